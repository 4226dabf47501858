/** Raw images as an image format: there is nothing in them but the disk. */

import { open, stat } from 'node:fs/promises'

import { Fault } from '../../core/fault.ts'
import { SECTOR } from '../../core/units.ts'
import type { ImageFormat, ImageLayer } from '../image-format.ts'
import { openImageFile } from './aio.ts'
import { unlockedLook } from './unlocked-look.ts'

export const rawFormat: ImageFormat = {
  name: 'aio',
  aliases: ['raw'],
  creation: {},
  async open(path, use) {
    const file = await openImageFile(path, use)
    const layer: ImageLayer = Object.assign(file, {
      held: (at: number, length: number) => [{ at, length, kind: 'data' as const }],
    })
    return layer
  },
  async create(path, { size, backing }) {
    if (backing !== undefined) {
      throw new Fault('NOT_SUPPORTED', 'a raw image has no parent', {
        where: path,
        remedy: 'use qcow or vhd',
      })
    }
    try {
      const handle = await open(path, 'wx', 0o600)
      try {
        await handle.truncate(size)
        await handle.sync()
      } finally {
        await handle.close()
      }
    } catch (cause) {
      throw new Fault('IO', 'the image cannot be created', { where: path, cause })
    }
  },
  async describe(path) {
    const size = await unlockedLook(path, (file) => Promise.resolve(file.geometry.size))
    const { blocks } = await stat(path)
    return {
      ...{ path, format: 'aio', size, fileSize: size, allocated: blocks * SECTOR },
      ...{ backing: undefined, details: {} },
    }
  },
  check: () => Promise.resolve({ errors: [], leaks: [], repaired: [] }),
}
