/** The kernel's own NBD client, in a guest, against a colotap on this machine: over TCP, with several connections. */

import { createHash } from 'node:crypto'
import { readFile, stat } from 'node:fs/promises'
import path from 'node:path'

import t, { type Test } from 'tap'

import { MiB } from '../../core/units.ts'
import { Authority } from '../support/certificates.ts'
import { serveColotap, type ColotapServer } from '../support/colotap.ts'
import { createEmptyImage } from '../support/images.ts'
import { freePorts, tempDirectory } from '../support/scope.ts'
import { CLEAN_EXIT } from '../support/served-disk.ts'
import { EXT4, PLANT_TREE, VERIFY_TREE } from './file-systems.ts'
import { Guest } from './guest.ts'

const SIZE = 64 * MiB
const DELETED = 16 * MiB
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

/** @param settings of the listener, such as `?tls-creds=DIR` */
async function serveOverTcp(t: Test, settings = ''): Promise<Export> {
  const image = path.join(await tempDirectory(t), 'disk.img')
  await createEmptyImage(image, SIZE)
  const [port = 0] = await freePorts(1)
  const server = await serveColotap(t, {
    exports: { disk: `aio:${image}` },
    args: ['--listen', `tcp:127.0.0.1:${port}${settings}`],
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

/** Shell: the folder's files, in the guest's /run/tls. */
async function planted(folder: string, names: readonly string[]): Promise<string> {
  const files = await Promise.all(
    names.map(async (name) => {
      const text = await readFile(path.join(folder, name), 'utf8')
      return `cat >/run/tls/${name} <<'END-OF-FILE'\n${text}\nEND-OF-FILE\n`
    }),
  )
  return `mkdir -p /run/tls\n${files.join('')}`
}

void t.test('the kernel over TLS, with a certificate of its own', SLOW, async (t) => {
  const directory = await tempDirectory(t)
  const authority = await Authority.make(t, path.join(directory, 'ca'))
  const server = await authority.issue(path.join(directory, 'server'), 'server')
  const client = await authority.issue(path.join(directory, 'client'), 'client')
  const disk = await serveOverTcp(t, `?tls-creds=${server}`)
  const files = await planted(client, ['ca-cert.pem', 'client-cert.pem', 'client-key.pem'])
  const identity = [
    ...['-cacertfile /run/tls/ca-cert.pem', '-tlshostname localhost'],
    ...['-certfile /run/tls/client-cert.pem', '-keyfile /run/tls/client-key.pem'],
  ].join(' ')
  const plain = `nbd-client 10.0.2.2 ${disk.port} /dev/nbd1 -name disk`
  await useDisk(
    t,
    disk,
    `${files}
    if ${plain}; then echo 'it was served without TLS' >&2; exit 1; fi
    ${attach(disk.port, identity)}`,
  )
})
