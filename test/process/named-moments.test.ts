/**
 * Hosts that die or hang at the moments that matter, each by its name: as a checkpoint is asked, as it is reported, while a
 * resync, a copy, a takeover or an exchange of the roles is under way. Whatever the moment, the pair comes back with every
 * acknowledged write, or with the last checkpoint where its primary stayed dead.
 */

import t, { type Test } from 'tap'
import { NbdClient } from '../../nbd/client.ts'
import {
  groupState,
  linkLost,
  protection,
  restartHost,
  startPair,
  until,
  type ReplicaHost,
} from '../support/replica-pair.ts'
import type { QmpClient } from '../support/qmp.ts'

const MiB = 1 << 20
const BLOCK = 65536
const SIZE = 24 * MiB
const OPTIONS = {
  mode: 'remus',
  disks: { disk: SIZE },
  // Small enough for a copy of the whole disk to come in parts.
  settings: ['heartbeat=50', 'timeout=500', 'memory=8M'],
} as const

type Role = 'primary' | 'secondary'
type Hosts = Record<Role, ReplicaHost>

/** The guest's disk, block by block: the last acknowledged value, and the one that is being written if any. */
class Guest {
  readonly acknowledged = Buffer.alloc(SIZE / BLOCK)
  #writing: { readonly block: number; readonly value: number } | undefined
  #client: NbdClient | undefined

  async attach({ server }: ReplicaHost): Promise<void> {
    const address = { kind: 'unix', path: server.socket } as const
    this.#client = await NbdClient.connect({ address, exportName: 'disk' })
  }

  /** Writes blocks until it is told to stop, or its host is gone. */
  async write(value: number, blocks: number): Promise<void> {
    for (let block = 0; block < blocks; block += 1) {
      this.#writing = { block, value }
      await this.#client?.write(Buffer.alloc(BLOCK, value), block * BLOCK)
      this.acknowledged[block] = value
      this.#writing = undefined
    }
  }

  abandon(): void {
    this.#client?.abandon()
  }

  /** @returns what is wrong with the disk that it finds */
  async violation(expected: Buffer = this.acknowledged): Promise<string | undefined> {
    const found = Buffer.alloc(BLOCK)
    for (let block = 0; block < SIZE / BLOCK; block += 1) {
      await this.#client?.read(found, block * BLOCK)
      const maybe = this.#writing?.block === block ? this.#writing.value : undefined
      const right = [expected[block], maybe].some((value) => found.every((byte) => byte === value))
      if (!right) return `block ${block} has ${found[0]}, not ${expected[block]}`
    }
    return undefined
  }
}

interface Moment {
  /** Brings the moment about, and resolves in it. What is under way then ends somehow, with whoever is hit. */
  readonly reach: (hosts: Hosts, guest: Guest) => Promise<unknown>
}

/** A command whose outcome nobody knows when a side is hit. */
function ask({ qmp }: ReplicaHost, command: string): void {
  qmp.execute(command).catch(() => undefined)
}

async function reported(qmp: QmpClient, event: string): Promise<void> {
  const before = qmp.events.length
  await until(qmp, () =>
    Promise.resolve(qmp.events.slice(before).some((seen) => seen['event'] === event)),
  )
}

const MOMENTS: Readonly<Record<string, Moment>> = {
  'as a checkpoint is asked': {
    reach: async ({ primary }, guest) => {
      await guest.write(1, 16)
      ask(primary, 'replication-checkpoint')
    },
  },
  'as the secondary reports a checkpoint': {
    reach: async ({ primary, secondary }, guest) => {
      await guest.write(1, 16)
      const committed = reported(secondary.qmp, 'REPLICATION_CHECKPOINT')
      ask(primary, 'replication-checkpoint')
      await committed
    },
  },
  'while an epoch is on its way to the image': {
    reach: async ({ primary }, guest) => {
      await guest.write(1, 64)
      await primary.qmp.execute('replication-checkpoint')
    },
  },
  'as a resync begins': {
    reach: async ({ primary }, guest) => {
      await primary.qmp.execute('replication-disconnect')
      await guest.write(1, 32)
      await primary.qmp.execute('replication-connect')
      await protection(primary.qmp, 'resyncing')
    },
  },
  'in the middle of a copy in parts': {
    reach: async ({ primary, secondary }, guest) => {
      await guest.write(1, SIZE / BLOCK)
      await primary.qmp.execute('replication-resync')
      await until(secondary.qmp, async () =>
        ['inconsistent', 'resyncing'].includes((await groupState(secondary.qmp)).protection),
      )
    },
  },
  'as the roles are exchanged': {
    reach: async ({ primary }, guest) => {
      await guest.write(1, 16)
      ask(primary, 'replication-switchover')
    },
  },
}

/** Brings back whoever is dead, and a protected pair, as an operator would. */
async function recover(t: Test, hosts: Hosts): Promise<Hosts> {
  const both: ReplicaHost[] = []
  for (const host of [hosts.primary, hosts.secondary])
    both.push(host.server.child.ended ? await restartHost(t, host) : host)
  const [one, other] = both as [ReplicaHost, ReplicaHost]
  for (;;) {
    // Counted first: what happens between question and wait is not missed.
    const seen = [one.qmp.events.length, other.qmp.events.length] as const
    const [first, second] = [await groupState(one.qmp), await groupState(other.qmp)]
    if (first.protection === 'protected' && second.protection === 'protected')
      return first.role === 'secondary'
        ? { primary: other, secondary: one }
        : { primary: one, secondary: other }
    // The exchange was cut off when nobody led: both hold the same data.
    if (
      first.role === 'secondary' &&
      second.role === 'secondary' &&
      first.protection !== 'protected'
    )
      await one.qmp.execute('replication-promote').catch(() => undefined)
    await Promise.race([one.qmp.eventAfter(seen[0]), other.qmp.eventAfter(seen[1])])
  }
}

async function endsWhole(t: Test, guest: Guest, { primary, secondary }: Hosts): Promise<void> {
  guest.abandon()
  await guest.attach(primary)
  t.equal(await guest.violation(), undefined, 'every acknowledged write is there')
  guest.abandon()
  await primary.qmp.execute('replication-switchover')
  await guest.attach(secondary)
  t.equal(await guest.violation(), undefined, 'on the other side as well')
  guest.abandon()
  for (const { server } of [primary, secondary]) t.equal((await server.stop()).code, 0)
}

for (const [name, { reach }] of Object.entries(MOMENTS))
  for (const victim of ['primary', 'secondary'] as const) {
    void t.test(`the ${victim} is killed ${name}`, async (t) => {
      const hosts: Hosts = await startPair(t, OPTIONS)
      const guest = new Guest()
      await guest.attach(hosts.primary)
      await reach(hosts, guest)
      await hosts[victim].server.child.kill()
      await endsWhole(t, guest, await recover(t, hosts))
    })

    void t.test(`the ${victim} hangs ${name}, and comes back`, async (t) => {
      const hosts: Hosts = await startPair(t, OPTIONS)
      const guest = new Guest()
      await guest.attach(hosts.primary)
      await reach(hosts, guest)
      hosts[victim].server.child.signal('SIGSTOP')
      await linkLost(hosts[victim === 'primary' ? 'secondary' : 'primary'].qmp)
      hosts[victim].server.child.signal('SIGCONT')
      await endsWhole(t, guest, await recover(t, hosts))
    })
  }

void t.test('the secondary is killed as it is promoted, again and again', async (t) => {
  const { primary, secondary } = await startPair(t, OPTIONS)
  const guest = new Guest()
  await guest.attach(primary)
  await guest.write(1, 32)
  await primary.qmp.execute('replication-checkpoint')
  const agreed = Buffer.from(guest.acknowledged)
  await guest.write(2, 16)
  await primary.server.child.kill()
  let survivor = secondary
  await linkLost(survivor.qmp)
  for (let round = 0; round < 4; round += 1) {
    ask(survivor, 'replication-promote')
    await survivor.server.child.kill()
    survivor = await restartHost(t, secondary)
  }
  await survivor.qmp.execute('replication-promote')
  t.equal((await groupState(survivor.qmp)).role, 'active')
  guest.abandon()
  await guest.attach(survivor)
  t.equal(await guest.violation(agreed), undefined, 'it is the last checkpoint, and nothing later')
  guest.abandon()
  t.equal((await survivor.server.stop()).code, 0)
})
