/** Roles that are exchanged between real processes: by a failure and back, by plan, and after both sides went on alone. */

import { readFile, writeFile } from 'node:fs/promises'
import path from 'node:path'
import t, { type Test } from 'tap'
import { NbdClient } from '../../nbd/client.ts'
import {
  groupState,
  linkLost,
  protection,
  restartHost,
  startPair,
  type ReplicaHost,
} from '../support/replica-pair.ts'
import { tempDirectory } from '../support/scope.ts'

const SIZE = 16 * 1024 * 1024
const BLOCK = 4096
const OPTIONS = {
  mode: 'remus',
  disks: { disk: SIZE },
  settings: ['heartbeat=50', 'timeout=400'],
} as const

/** A guest with a memory of what it wrote. */
class Guest {
  readonly expected: Buffer
  readonly #client: NbdClient

  private constructor(client: NbdClient, expected: Buffer) {
    this.#client = client
    this.expected = expected
  }

  static async on(host: ReplicaHost, expected: Buffer = Buffer.alloc(SIZE)): Promise<Guest> {
    const address = { kind: 'unix', path: host.server.socket } as const
    return new Guest(await NbdClient.connect({ address, exportName: 'disk' }), expected)
  }

  async write(block: number, value: number): Promise<void> {
    const data = Buffer.alloc(BLOCK, value)
    await this.#client.write(data, block * BLOCK)
    data.copy(this.expected, block * BLOCK)
  }

  async sees(): Promise<boolean> {
    const found = Buffer.alloc(SIZE)
    for (let at = 0; at < SIZE; at += 1 << 20)
      await this.#client.read(found.subarray(at, at + (1 << 20)), at)
    return found.equals(this.expected)
  }

  leave(): Promise<void> {
    return this.#client.disconnect()
  }

  abandon(): void {
    this.#client.abandon()
  }
}

async function checkpoint({ qmp }: ReplicaHost): Promise<void> {
  await qmp.execute('replication-checkpoint')
}

async function endsEqual(t: Test, primary: ReplicaHost, secondary: ReplicaHost): Promise<void> {
  await checkpoint(primary)
  t.equal((await primary.server.stop()).code, 0)
  t.equal((await secondary.server.stop()).code, 0)
  const [one, other] = await Promise.all([
    readFile(primary.images['disk']!),
    readFile(secondary.images['disk']!),
  ])
  t.ok(one.equals(other), 'after a clean end both images are equal')
}

void t.test(
  'an old primary that comes back after a failover follows the new one, and can lead again',
  async (t) => {
    const { primary, secondary } = await startPair(t, OPTIONS)
    const before = await Guest.on(primary)
    for (let block = 0; block < 64; block += 1) await before.write(block * 7, 1)
    await checkpoint(primary)
    const agreed = Buffer.alloc(SIZE, before.expected)
    for (let block = 0; block < 64; block += 1) await before.write(block * 11 + 1, 2)
    await primary.server.child.kill()
    before.abandon()
    await linkLost(secondary.qmp)
    await secondary.qmp.execute('replication-promote')
    const after = await Guest.on(secondary, agreed)
    t.ok(await after.sees(), 'the promoted side has the checkpoint and nothing later')
    for (let block = 0; block < 32; block += 1) await after.write(block * 13 + 2, 3)

    const returned = await restartHost(t, primary)
    await protection(secondary.qmp, 'protected')
    await protection(returned.qmp, 'protected')
    t.match(await groupState(returned.qmp), { role: 'secondary' })
    t.match(await groupState(secondary.qmp), { role: 'primary' })
    await after.write(100, 4)

    await after.leave()
    await secondary.qmp.execute('replication-switchover')
    t.match(await groupState(returned.qmp), { role: 'primary', protection: 'protected' })
    t.match(await groupState(secondary.qmp), { role: 'secondary', protection: 'protected' })
    const again = await Guest.on(returned, after.expected)
    t.ok(await again.sees(), 'a planned exchange of the roles loses nothing')
    await again.write(200, 5)
    await again.leave()
    await endsEqual(t, returned, secondary)
  },
)

void t.test('a primary that dies and comes back sends what may differ, and goes on', async (t) => {
  const { primary, secondary } = await startPair(t, OPTIONS)
  const before = await Guest.on(primary)
  await before.write(1, 1)
  await checkpoint(primary)
  for (let block = 0; block < 64; block += 1) await before.write(block * 17, 2)
  await primary.server.child.kill()
  before.abandon()
  const returned = await restartHost(t, primary)
  await protection(returned.qmp, 'protected')
  t.match(await groupState(returned.qmp), { role: 'primary' })
  const after = await Guest.on(returned, before.expected)
  t.ok(await after.sees(), 'what was acknowledged is there')
  await after.write(3, 3)
  await after.leave()
  await endsEqual(t, returned, secondary)
})

void t.test(
  'where both sides went on alone, an operator chooses, and nothing else happens',
  async (t) => {
    const { primary, secondary } = await startPair(t, OPTIONS)
    const one = await Guest.on(primary)
    await one.write(1, 1)
    await checkpoint(primary)
    const agreed = Buffer.alloc(SIZE, one.expected)
    await primary.qmp.execute('replication-disconnect')
    await linkLost(secondary.qmp)
    await one.write(2, 2)
    await secondary.qmp.execute('replication-promote')
    const other = await Guest.on(secondary, agreed)
    await other.write(3, 3)
    await one.leave()
    await primary.qmp.execute('replication-connect')
    await refused(primary)
    t.match((await groupState(primary.qmp)).reason, /split brain.*--discard/)
    await primary.qmp.execute('replication-connect', { discard: 'local' })
    await protection(secondary.qmp, 'protected')
    await protection(primary.qmp, 'protected')
    t.match(await groupState(primary.qmp), { role: 'secondary' })
    t.ok(await other.sees(), 'the chosen side is untouched')
    await other.leave()
    await endsEqual(t, secondary, primary)
  },
)

void t.test(
  'with a fencing program a secondary takes over by itself, and only when that says so',
  async (t) => {
    const folder = await tempDirectory(t)
    const program = path.join(folder, 'fence')
    const said = path.join(folder, 'said')
    // The first answer is no; the secondary is told of another lost link before the second one.
    await writeFile(
      program,
      `#!/bin/sh\necho "$COLOTAP_GROUP $COLOTAP_ACTION $COLOTAP_CHECKPOINT" >> ${said}\n[ "$(wc -l < ${said})" -gt 1 ]\n`,
      { mode: 0o755 },
    )
    const settings = [...OPTIONS.settings, `fence=${program}`]
    const { primary, secondary } = await startPair(t, { ...OPTIONS, settings })
    const guest = await Guest.on(primary)
    await guest.write(1, 1)
    await checkpoint(primary)
    const { checkpoint: number } = await groupState(primary.qmp)
    await secondary.server.child.kill()
    const back = await restartHost(t, secondary)
    await protection(primary.qmp, 'protected')
    await protection(back.qmp, 'protected')
    t.match(await readFile(said, 'utf8'), new RegExp(`^test continue ${number}\\n$`))
    await primary.server.child.kill()
    guest.abandon()
    await active(back)
    t.match(await readFile(said, 'utf8'), /\ntest promote \d+\n$/)
    const after = await Guest.on(back, guest.expected)
    t.ok(await after.sees(), 'it serves the last checkpoint')
    await after.leave()
  },
)

/** Resolves when this side is the active one. */
async function active({ qmp }: ReplicaHost): Promise<void> {
  for (;;) {
    const seen = qmp.events.length
    if ((await groupState(qmp)).role === 'active') return
    await qmp.eventAfter(seen)
  }
}

/** Resolves when the group says why it does not connect. */
async function refused({ qmp }: ReplicaHost): Promise<void> {
  for (;;) {
    const seen = qmp.events.length
    if ((await groupState(qmp)).reason?.includes('split brain') === true) return
    await qmp.eventAfter(seen)
  }
}
