/**
 * An epoch many times larger than the secondary's memory, with real processes: it is received, committed, promoted and
 * recovered byte for byte, in the memory that the secondary was given.
 */

import { readFile } from 'node:fs/promises'

import t from 'tap'

import { below, seededRandom } from '../../core/seeded-random.ts'
import { KiB, MiB } from '../../core/units.ts'
import { NbdClient } from '../../nbd/client.ts'
import {
  groupState,
  restartHost,
  startPair,
  until,
  type ReplicaHost,
} from '../support/replica-pair.ts'
import { imageContent } from '../support/replica-images.ts'

const SIZE = 384 * MiB
const MEMORY = 16 * MiB
/** Bytes that are written between two checkpoints. */
const EPOCH = 288 * MiB
/**
 * What a secondary takes besides, of the process's memory: buffers of the link, of the journal (16 MiB that wait and 16 MiB to be used
 * again) and of reads, and what the garbage collector leaves for a while. Without spilling it would be two thirds of EPOCH more.
 */
const BESIDE = 144 * MiB
/** What it takes besides when it serves its disk to a client that reads all of it. */
const SERVING = 112 * MiB

async function attach({ server }: ReplicaHost): Promise<NbdClient> {
  return NbdClient.connect({ address: { kind: 'unix', path: server.socket }, exportName: 'a' })
}

/** The most memory that the process ever had resident, in bytes. */
async function peak({ server }: ReplicaHost): Promise<number> {
  const status = await readFile(`/proc/${server.child.pid}/status`, 'utf8')
  return Number(/^VmHWM:\s+(\d+) kB$/m.exec(status)?.[1]) * KiB
}

/** Writes an epoch: large and small pieces that overwrite each other, and zeroes. `content` becomes what the disk has. */
async function write(client: NbdClient, content: Buffer, bytes: number, seed: number) {
  const random = seededRandom(seed)
  let written = 0
  while (written < bytes) {
    const turn: Promise<void>[] = []
    for (let count = 0; count < 8; count += 1) {
      const small = random() < 0.7
      const length = small ? 512 * (1 + below(random, 16)) : MiB
      // Each in its own eighth of the disk, so that none of those under way at a time overlap.
      const at = (count * SIZE) / 8 + 512 * below(random, (SIZE / 8 - length) / 512)
      const value = random() < 0.1 ? 0 : 1 + below(random, 255)
      content.fill(value, at, at + length)
      turn.push(
        value === 0
          ? client.zero(at, length)
          : client.write(Buffer.from(content.subarray(at, at + length)), at),
      )
      written += length
    }
    await Promise.all(turn)
  }
}

async function read(client: NbdClient): Promise<Buffer> {
  const content = Buffer.alloc(SIZE)
  for (let at = 0; at < SIZE; at += 4 * MiB)
    await client.read(content.subarray(at, at + 4 * MiB), at)
  return content
}

async function spilled({ qmp }: ReplicaHost): Promise<number> {
  const { groups } = (await qmp.execute('replication-status')) as {
    groups: readonly { spilledBytes: number }[]
  }
  return groups[0]?.spilledBytes ?? 0
}

for (const killed of [false, true])
  void t.test(
    `an epoch larger than the memory is ${killed ? 'recovered after a SIGKILL' : 'promoted while it is spilled'}`,
    { timeout: 240_000 },
    async (t) => {
      const settings = [`memory=${MEMORY / MiB}M`, 'ack=received', 'timeout=30000']
      const pair = await startPair(t, { mode: 'remus', disks: { a: SIZE }, settings })
      const { primary } = pair
      let { secondary } = pair
      const before = await peak(secondary)
      const client = await attach(primary)
      const content = Buffer.alloc(SIZE)
      await write(client, content, EPOCH, 1)
      t.ok((await spilled(secondary)) > EPOCH / 2, 'most of it is spilled')
      const { protection, ramdiskBytes } = await groupState(secondary.qmp)
      t.equal(protection, 'protected')
      t.ok(ramdiskBytes <= MEMORY, `${ramdiskBytes} bytes of epochs in memory`)
      await primary.qmp.execute('replication-checkpoint')
      const committed = Buffer.from(content)
      if (!killed) await write(client, content, EPOCH / 2, 2)
      const most = await peak(secondary)
      t.ok(most - before < BESIDE, `it took ${Math.round((most - before) / MiB)} MiB`)
      if (killed) {
        await secondary.server.child.kill()
        secondary = await restartHost(t, secondary)
      }
      await primary.server.child.kill()
      await until(
        secondary.qmp,
        async () => (await groupState(secondary.qmp)).protection !== 'protected',
      )
      await secondary.qmp.execute('replication-promote')
      const reader = await attach(secondary)
      t.ok((await read(reader)).equals(committed), 'the promoted disk is the checkpoint')
      const after = await peak(secondary)
      t.ok(
        after - before < BESIDE + SERVING,
        `until the end ${Math.round((after - before) / MiB)} MiB`,
      )
      await reader.disconnect()
      t.equal((await secondary.server.stop()).code, 0)
      const image = await imageContent(t, secondary.images['a'] ?? '', secondary.format)
      t.ok(image.equals(committed), 'and so is its image')
    },
  )
