/** `colotap demo`: the main job end to end on this machine, on real files, in under a minute. */

import { tmpdir } from 'node:os'
import path from 'node:path'

import fs from 'fs-extra'

import type { Subcommand } from './command-line.ts'
import { hostFormats } from './demo/disk-images.ts'
import { tell } from './demo/story.ts'

export const demo: Subcommand = {
  name: 'demo',
  summary:
    'replicate, kill the primary in mid-write, take over, and prove what survived: on this machine',
  options: {
    keep: { meaning: 'keep the images and say where they are' },
    format: {
      value: 'FORMAT[,FORMAT]',
      meaning:
        'what the images are: aio (raw, the default), qcow or vhd; of both hosts, or the primary first',
    },
  },
  notes:
    'Needs no root and mounts nothing. With e2fsprogs installed the disk is a real ext4 and is checked with e2fsck.',
  async run(given, terminal) {
    const formats = hostFormats(given.value('format'))
    const folder = await fs.mkdtemp(path.join(tmpdir(), 'colotap-demo-'))
    const startedMs = performance.now()
    try {
      await tell(folder, formats, (line) => terminal.print(line))
      terminal.print(`Success in ${((performance.now() - startedMs) / 1000).toFixed(1)} s.`)
    } finally {
      if (given.has('keep')) terminal.print(`Images: ${folder}`)
      else await fs.remove(folder)
    }
  },
}
