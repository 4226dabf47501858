/** A temporary folder whose path is short enough for unix sockets; removed with the test. */

import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

import type { Test } from 'tap'

export function socketFolder(t: Test): string {
  const folder = mkdtempSync(join(tmpdir(), 'colotap-'))
  t.teardown(() => {
    rmSync(folder, { recursive: true, force: true })
  })
  return folder
}
