/** The kernel's own NBD client, in a guest, against a colotap on this machine: over TCP, with several connections. */

import { createHash } from 'node:crypto'
import { readFile, stat } from 'node:fs/promises'
import path from 'node:path'

import t, { type Test } from 'tap'

import { MiB } from '../../core/units.ts'
import { serveColotap, type ColotapServer } from '../support/colotap.ts'
import { createEmptyImage } from '../support/images.ts'
import { freePorts, tempDirectory } from '../support/scope.ts'
import { CLEAN_EXIT } from '../support/served-disk.ts'
import { EXT4, PLANT_TREE, VERIFY_TREE } from './file-systems.ts'
import { Guest } from './guest.ts'

const SIZE = 96 * MiB
const DELETED = 32 * MiB
const CONNECTIONS = 4
const SLOW = { timeout: 1_800_000 }

/** Shell: the guest's network, in which 10.0.2.2 is the loopback of this machine. */
const NETWORK = `
  load nbd
  ip link set lo up
  ip addr add 10.0.2.15/24 dev eth0
  ip link set eth0 up
`

interface Export {
  readonly server: ColotapServer
  readonly port: number
  readonly image: string
}

async function serveOverTcp(t: Test, args: readonly string[] = []): Promise<Export> {
  const image = path.join(await tempDirectory(t), 'disk.img')
  await createEmptyImage(image, SIZE)
  const [port = 0] = await freePorts(1)
  const server = await serveColotap(t, {
    exports: { disk: `aio:${image}` },
    args: ['--listen', `tcp:127.0.0.1:${port}`, ...args],
  })
  return { server, port, image }
}

/** Shell: attaches the export to /dev/nbd0, and awaits that the kernel knows its size. */
function attach(port: number, more = ''): string {
  return `
    nbd-client 10.0.2.2 ${port} /dev/nbd0 -name disk -connections ${CONNECTIONS} ${more}
    [ $(blockdev --getsize64 /dev/nbd0) = ${SIZE} ]
  `
}

/** Shell: detaches it, and awaits that the kernel has let go. */
const DETACH = `
  nbd-client -d /dev/nbd0
  while [ -e /sys/block/nbd0/pid ]; do usleep 10000; done
`

/** TCP connections that are established with the port of loopback: proc(5), /proc/net/tcp. */
async function connections(port: number): Promise<number> {
  const ESTABLISHED = '01'
  const local = `0100007F:${port.toString(16).toUpperCase().padStart(4, '0')}`
  const lines = (await readFile('/proc/net/tcp', 'utf8')).split('\n')
  return lines.filter((line) => {
    const [, address, , state] = line.trim().split(/\s+/)
    return address === local && state === ESTABLISHED
  }).length
}

async function useDisk(t: Test, { server, port, image }: Export, attached: string): Promise<void> {
  const guest = await Guest.start(t, { network: true })
  await guest.run(`${NETWORK} ${attached}`)
  t.equal(await connections(port), CONNECTIONS, 'each connection is one of its own')
  await guest.run(`
    ${EXT4.make('/dev/nbd0')}
    mount -t ext4 /dev/nbd0 /mnt; cd /mnt
    ${PLANT_TREE}
    head -c ${DELETED} /dev/urandom >/mnt/deleted
    sync`)
  const full = (await stat(image)).blocks * 512
  await guest.run('rm /mnt/deleted; sync; fstrim /mnt')
  const trimmed = (await stat(image)).blocks * 512
  t.ok(full - trimmed > 0.9 * DELETED, `${full - trimmed} of ${DELETED} bytes are free again`)
  await guest.run(`cd /; umount /mnt; ${DETACH}`)

  await guest.run(`
    ${attached}
    ${EXT4.check('/dev/nbd0')}
    mount -t ext4 -o ro /dev/nbd0 /mnt; cd /mnt
    ${VERIFY_TREE} cd /; umount /mnt
    say $(sha256sum </dev/nbd0)
    ${DETACH}`)
  await guest.powerOff()
  t.same(await server.stop(), CLEAN_EXIT)
  const stored = createHash('sha256')
    .update(await readFile(image))
    .digest('hex')
  t.same(guest.said, [`${stored} -`], 'the guest reads what the image holds')
}

void t.test('the kernel reads, writes and trims over several connections', SLOW, async (t) => {
  const disk = await serveOverTcp(t)
  await useDisk(t, disk, attach(disk.port))
})
