/**
 * VHD chains as libvhdi reads them: a reader by other people, from the specification, that knows differencing images,
 * which QEMU does not. Its sector bitmaps are coarse: it takes eight sectors for present where one of them is.
 */

import { readFile, rm } from 'node:fs/promises'
import { mustRun } from './child.ts'
import type { Scope } from './scope.ts'

const READER = `
import sys, pyvhdi
files = []
for name in sys.argv[1:-1]:
    file = pyvhdi.file()
    file.open(name)
    files.append(file)
for child, parent in zip(files, files[1:]):
    assert child.parent_identifier == parent.identifier
    child.set_parent(parent)
with open(sys.argv[-1], 'wb') as out:
    left = files[0].media_size
    while left > 0:
        piece = files[0].read_buffer(min(left, 1 << 20))
        assert piece
        out.write(piece)
        left -= len(piece)
`

/** The disk that a chain of images shows, the topmost image first. */
export async function readByLibvhdi(scope: Scope, chain: readonly string[]): Promise<Buffer> {
  const raw = `${chain[0]}.raw`
  // Debian's modules belong to Debian's Python, whatever else is called python3.
  await mustRun(scope, '/usr/bin/python3', ['-c', READER, ...chain, raw])
  const content = await readFile(raw)
  await rm(raw)
  return content
}
