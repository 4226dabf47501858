/** The version that this server reports. */

import { readFileSync } from 'node:fs'

import { AssertionFailure } from '../core/assert.ts'

/**
 * Toolstacks compare this number to learn which commands exist. It is the first QEMU that has every command
 * that the table shares with QEMU: query-block-exports came last.
 */
const QEMU = { major: 5, minor: 2, micro: 0 } as const

/** The version of the colotap package, such as `0.1.0`. */
export const VERSION = packageVersion()

/** The reply of query-version, and the `version` of the greeting. */
export function versionReply(): { readonly qemu: typeof QEMU; readonly package: string } {
  return { qemu: QEMU, package: `colotap ${VERSION}` }
}

/** package.json lies one folder above the sources, and two above the compiled files. */
function packageVersion(): string {
  for (const up of ['../package.json', '../../package.json']) {
    let text: string
    try {
      text = readFileSync(new URL(up, import.meta.url), 'utf8')
    } catch {
      continue
    }
    const { name, version } = JSON.parse(text) as { name?: unknown; version?: unknown }
    if (name === 'colotap' && typeof version === 'string') return version
  }
  throw new AssertionFailure(
    'the package that this file belongs to is installed with its package.json',
  )
}
