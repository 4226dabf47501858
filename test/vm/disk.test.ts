/** A guest's disk is a colotap export: file systems on it live through trim, power cycles and their own checks. */

import { stat } from 'node:fs/promises'
import path from 'node:path'

import t, { type Test } from 'tap'

import { MiB } from '../../core/units.ts'
import { mustRun } from '../support/child.ts'
import { colotap, serveColotap, type ColotapServer } from '../support/colotap.ts'
import { createEmptyImage } from '../support/images.ts'
import { tempDirectory } from '../support/scope.ts'
import { CLEAN_EXIT } from '../support/served-disk.ts'
import { EXT4, PLANT_TREE, VERIFY_TREE, XFS } from './file-systems.ts'
import { Guest } from './guest.ts'

/** mkfs.xfs refuses less than 300 MiB. */
const SIZE = 512 * MiB
/** Of data that is deleted before the trim. */
const DELETED = 48 * MiB

interface Backend {
  readonly name: string
  pipeline(image: string): string
  create(t: Test, image: string): Promise<void>
  /** What its own tool says of the image, which nobody has open. */
  check?(t: Test, image: string): Promise<void>
}

const BACKENDS: readonly Backend[] = [
  {
    name: 'aio',
    pipeline: (image) => `aio:${image}`,
    create: (_, image) => createEmptyImage(image, SIZE),
  },
  {
    name: 'qcow',
    pipeline: (image) => `qcow:${image}?discard=unmap`,
    async create(t, image) {
      const { code, stderr } = await colotap(t, [
        ...['image', 'create', `qcow:${image}`, '--size', String(SIZE)],
      ])
      t.equal(code, 0, stderr)
    },
    async check(t, image) {
      await mustRun(t, 'qemu-img', ['check', '-f', 'qcow2', image])
    },
  },
]

async function allocated(image: string): Promise<number> {
  return (await stat(image)).blocks * 512
}

async function boot(t: Test, server: ColotapServer): Promise<Guest> {
  return Guest.start(t, { disks: [{ socket: server.socket, exportName: 'disk' }] })
}

for (const backend of BACKENDS) {
  for (const fileSystem of [EXT4, XFS]) {
    const name = `${fileSystem.name} on ${backend.name} is trimmed, and whole after a restart`
    void t.test(name, { timeout: 1_800_000 }, async (t) => {
      const image = path.join(await tempDirectory(t), 'disk.img')
      await backend.create(t, image)
      const exports = { disk: backend.pipeline(image) }
      const server = await serveColotap(t, { exports })
      const guest = await boot(t, server)
      await guest.run(`${fileSystem.load}
        ${fileSystem.make('/dev/vda')}
        mount -t ${fileSystem.name} /dev/vda /mnt; cd /mnt
        ${PLANT_TREE}
        head -c ${DELETED} /dev/urandom >/mnt/deleted
        sync`)
      const full = await allocated(image)
      await guest.run('rm /mnt/deleted; sync; fstrim /mnt')
      // QCOW frees clusters some flushes later (docs/decisions/0013-clusters-become-free-late.md).
      await guest.run('for flush in 1 2 3; do touch /mnt/$flush; sync; done')
      const trimmed = await allocated(image)
      t.ok(full > DELETED, `${full} bytes were allocated`)
      t.ok(full - trimmed > 0.9 * DELETED, `${full - trimmed} of ${DELETED} bytes are free again`)
      await guest.run(`cd /mnt; ${VERIFY_TREE} cd /; umount /mnt`)
      await guest.powerOff()

      t.same(await server.stop(), CLEAN_EXIT)
      await backend.check?.(t, image)
      const again = await serveColotap(t, { exports })
      const second = await boot(t, again)
      await second.run(`${fileSystem.load}
        ${fileSystem.check('/dev/vda')}
        mount -t ${fileSystem.name} /dev/vda /mnt; cd /mnt
        ${VERIFY_TREE} cd /; umount /mnt
        ${fileSystem.check('/dev/vda')}`)
      await second.powerOff()
      t.same(await again.stop(), CLEAN_EXIT)
    })
  }
}
