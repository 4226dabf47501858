/**
 * A disk is added to a running group, one leaves it, and one grows, on the two sides in any order, while the guest writes; and
 * either host, or both, are killed at a random moment of that. What was acknowledged is there afterwards; a disk that left is as it was
 * when it did; both sides end up with the same disks, byte for byte; and a promoted secondary has one checkpoint of each disk.
 *
 * KILL_ROUNDS and KILL_SEED choose how many moments and which ones.
 */

import t from 'tap'
import { BlockHistory, type Bounds } from '../../cli/soak/block-history.ts'
import { Workload } from '../../cli/soak/workload.ts'
import { below, seededRandom, type Random } from '../../core/seeded-random.ts'
import { NbdClient } from '../../nbd/client.ts'
import { killRounds } from '../support/kill-rounds.ts'
import { createReplicaImage, imageContent } from '../support/replica-images.ts'
import {
  groupState,
  linkLost,
  restartHost,
  startPair,
  until,
  type ReplicaHost,
} from '../support/replica-pair.ts'
import { ProgramScope } from '../support/scope.ts'

const BLOCK = 4096
const BLOCKS = 256
const GROWN = 384
const LANES = 4

/** What one disk is to become while the group runs. */
const CHANGES = { stays: undefined, leaves: 'remove', comes: 'add', grows: 'grow' } as const
type Disk = keyof typeof CHANGES
const DISKS = Object.keys(CHANGES) as Disk[]

interface Host {
  readonly role: 'primary' | 'secondary'
  present: ReplicaHost
  /** Disks that were changed here, as far as the operator was told. */
  readonly changed: Set<Disk>
}

interface DiskStatus {
  readonly name: string
  readonly size: number
  readonly standing: string
}

class Round {
  readonly scope = new ProgramScope()
  readonly random: Random
  readonly violations: string[] = []
  readonly histories = new Map<Disk, BlockHistory>()
  readonly workloads = new Map<Disk, Workload>()
  hosts!: Record<'primary' | 'secondary', Host>
  /** What each checkpoint may hold, by its number. */
  readonly checkpoints = new Map<number, ReadonlyMap<Disk, Bounds>>()
  #writes = 0
  #onWrites: { count: number; kill: () => void } | undefined
  #pipelines = new Map<string, string>()

  constructor(seed: number) {
    this.random = seededRandom(seed)
  }

  /** @param killed the hosts whose guests' writes are to be there after a kill */
  async start(killed: readonly Host['role'][] = []): Promise<void> {
    const { random, scope } = this
    const format = (role: Host['role']): 'aio' | 'qcow' =>
      // Where a new cluster is, QCOW keeps in memory until a flush: an acknowledged write may die with its process before that.
      random() < 0.6 || killed.includes(role) ? 'aio' : 'qcow'
    const size = BLOCKS * BLOCK
    const options = {
      mode: random() < 0.5 ? ('colo' as const) : ('remus' as const),
      disks: { stays: size, leaves: size, grows: size },
      settings: ['memory=8M', 'heartbeat=100', 'timeout=1000'],
      formats: { primary: format('primary'), secondary: format('secondary') },
    }
    const { primary, secondary } = await startPair(scope, options)
    const host = (role: Host['role'], present: ReplicaHost): Host => ({
      ...{ role, present },
      changed: new Set(),
    })
    this.hosts = { primary: host('primary', primary), secondary: host('secondary', secondary) }
    for (const { role, present } of Object.values(this.hosts)) {
      const path = present.images['stays']!.replace('stays', 'comes')
      await createReplicaImage(scope, path, present.format, size)
      this.#pipelines.set(role, present.place.exports['stays']!.replace('stays.img', 'comes.img'))
    }
    for (const [tag, disk] of DISKS.entries())
      this.histories.set(disk, new BlockHistory(GROWN, BLOCK, tag))
    const nothing = new Uint32Array(GROWN)
    const empty = new Map(DISKS.map((disk) => [disk, { acknowledged: nothing, issued: nothing }]))
    // The first copy, of empty disks, has ended with a checkpoint of its own.
    this.checkpoints.set((await groupState(primary.qmp)).checkpoint, empty)
    for (const disk of ['stays', 'leaves', 'grows'] as const) await this.write(disk, BLOCKS)
  }

  /** Has the guest write the first blocks of a disk from now on. */
  async write(disk: Disk, blocks: number): Promise<void> {
    const before = this.workloads.get(disk)
    before?.stop()
    await before?.idle()
    const { server } = this.hosts.primary.present
    const client = await NbdClient.connect({
      address: { kind: 'unix', path: server.socket },
      exportName: disk,
    })
    const workload = new Workload({
      ...{ client, blocks, lanes: LANES, history: this.histories.get(disk)! },
      random: seededRandom(below(this.random, 2 ** 32)),
      onWrite: () => this.#written(),
      onViolation: (violation) => this.violations.push(`${disk}: ${violation}`),
    })
    this.workloads.set(disk, workload)
    void workload.run()
  }

  async pause(disk: Disk): Promise<void> {
    this.workloads.get(disk)?.stop()
    await this.workloads.get(disk)?.idle()
    this.workloads.get(disk)?.abandon()
    this.workloads.delete(disk)
  }

  /** Kills hosts when the guest has made so many more writes. */
  killAfter(count: number, hosts: readonly Host[]): Promise<void> {
    return new Promise((resolve) => {
      const kill = (): void => {
        for (const { present } of hosts) present.server.child.signal('SIGKILL')
        resolve()
      }
      this.#onWrites = { count: this.#writes + count, kill }
    })
  }

  #written(): void {
    this.#writes += 1
    if (this.#onWrites === undefined || this.#writes < this.#onWrites.count) return
    const { kill } = this.#onWrites
    this.#onWrites = undefined
    kill()
  }

  /** Takes checkpoints until one is not confirmed. */
  async takeCheckpoints(): Promise<void> {
    const { qmp } = this.hosts.primary.present
    for (;;) {
      const acknowledged = this.#copies((history) => history.acknowledged())
      let number: number | undefined
      try {
        number = ((await qmp.execute('replication-checkpoint')) as { checkpoint: number })
          .checkpoint
      } catch {
        number = undefined
      }
      const issued = this.#copies((history) => history.issued())
      const bounds = new Map(
        DISKS.map((disk) => [
          disk,
          { acknowledged: acknowledged.get(disk)!, issued: issued.get(disk)! },
        ]),
      )
      // The one that was under way when a host died has the next number.
      const last = Math.max(...this.checkpoints.keys())
      this.checkpoints.set(number ?? last + 1, bounds)
      if (number === undefined) return
    }
  }

  #copies(copy: (history: BlockHistory) => Uint32Array): Map<Disk, Uint32Array> {
    return new Map([...this.histories].map(([disk, history]) => [disk, copy(history)]))
  }

  /** What an operator does on one side, again where it has failed, until it is done or the host is gone. */
  async change(host: Host, disk: Disk): Promise<void> {
    const { child } = host.present.server
    while (!child.ended && !host.changed.has(disk)) {
      try {
        await this.#command(host, disk)
        host.changed.add(disk)
      } catch (error) {
        // The other side first, or a link that is being made: then once more.
        const { message } = error as Error
        if (!/cannot be changed|grow that one first|closed|gone/.test(message)) throw error
        await new Promise((resolve) => setImmediate(resolve))
      }
    }
  }

  async #command({ role, present: { qmp } }: Host, disk: Disk): Promise<void> {
    const known = ((await qmp.execute('query-block-exports')) as { id: string }[]).some(
      ({ id }) => id === disk,
    )
    switch (CHANGES[disk]) {
      case 'add':
        if (!known)
          await qmp.execute('export-add', { name: disk, pipeline: this.#pipelines.get(role) })
        return
      case 'remove':
        if (known) await qmp.execute('export-remove', { name: disk, force: true })
        return
      case 'grow':
        await qmp.execute('block_resize', { device: disk, size: GROWN * BLOCK })
        return
      case undefined:
    }
  }

  /** Starts a host again, with the disks that its operator believes it to have. */
  async restart(host: Host): Promise<void> {
    const { present, changed, role } = host
    await present.server.child.end()
    const exports: Record<string, string> = { ...present.place.exports }
    if (changed.has('comes')) exports['comes'] = this.#pipelines.get(role)!
    if (changed.has('leaves')) delete exports['leaves']
    const place = { ...present.place, exports }
    host.present = await restartHost(this.scope, { ...present, place })
  }

  /** All of a disk as a guest reads it. */
  async read(host: Host, disk: Disk): Promise<Buffer> {
    const { server } = host.present
    const address = { kind: 'unix', path: server.socket } as const
    const client = await NbdClient.connect({ address, exportName: disk })
    const bytes = Buffer.alloc(client.info.size)
    try {
      await client.read(bytes, 0)
    } finally {
      client.abandon()
    }
    return bytes
  }

  async statuses(host: Host): Promise<readonly DiskStatus[]> {
    return ((await groupState(host.present.qmp)) as unknown as { disks: readonly DiskStatus[] })
      .disks
  }
}

/** Changes every disk on both sides, in any order, while its guest goes on. */
async function changeAll(round: Round): Promise<void> {
  const { hosts, random } = round
  const onHost = async (host: Host): Promise<void> => {
    const disks = (['comes', 'leaves', 'grows'] as const).toSorted(() => random() - 0.5)
    for (const disk of disks) {
      const leads = host.role === 'primary'
      if (leads && disk === 'leaves') await round.pause(disk)
      await round.change(host, disk)
      // Who is dead by now has no guest.
      if (!leads || disk === 'leaves' || host.present.server.child.ended) continue
      await round.write(disk, disk === 'grows' ? GROWN : BLOCKS).catch(() => undefined)
    }
  }
  await Promise.all(Object.values(hosts).map(onHost))
}

/** Both sides have the same disks, and every checkpoint from now on has them all. */
async function whole(round: Round): Promise<void> {
  const { primary, secondary } = round.hosts
  await until(primary.present.qmp, async () => {
    if ((await groupState(primary.present.qmp)).protection !== 'protected') return false
    // A disk counts with the checkpoint after its copy.
    await primary.present.qmp.execute('replication-checkpoint')
    const disks = [...(await round.statuses(primary)), ...(await round.statuses(secondary))]
    return disks.every(({ standing }) => standing === 'whole')
  })
}

function content({ scope }: Round, { present }: Host, disk: Disk): Promise<Buffer> {
  const path = present.images['stays']!.replace('stays', disk)
  return imageContent(scope, path, present.format)
}

function lastBounds(history: BlockHistory): Bounds {
  return { acknowledged: history.acknowledged(), issued: history.issued() }
}

/** The hosts that die come back one after the other: the pair is whole again, and nothing was lost. */
async function hostsDie(seed: number): Promise<string | undefined> {
  const round = new Round(seed)
  const { random, scope, histories } = round
  try {
    const roles = ([['primary'], ['secondary'], ['primary', 'secondary']] as const)[
      below(random, 3)
    ]!
    await round.start(roles.filter((role) => role === 'primary'))
    const { primary, secondary } = round.hosts
    const victims = roles.map((role) => round.hosts[role])
    const killed = round.killAfter(1 + below(random, 1500), victims)
    const checkpoints = round.takeCheckpoints()
    await changeAll(round)
    await killed
    for (const host of victims.toSorted(() => random() - 0.5)) await round.restart(host)
    for (const disk of round.workloads.keys()) await round.pause(disk)
    // Whatever was not done is done now, in the order in which it can be.
    for (const host of [secondary, primary])
      for (const disk of ['comes', 'leaves', 'grows'] as const) await round.change(host, disk)
    for (const disk of ['stays', 'comes', 'grows'] as const) {
      const history = histories.get(disk)!
      const found = await round.read(primary, disk)
      const violation = history.violation(found, lastBounds(history))
      if (violation !== undefined) return `disk ${disk} of the primary: ${violation}`
      history.settle(found, lastBounds(history))
      await round.write(disk, found.length / BLOCK)
    }
    await whole(round)
    for (const disk of round.workloads.keys()) await round.pause(disk)
    await primary.present.qmp.execute('replication-checkpoint')
    const ends = [await primary.present.server.stop(), await secondary.present.server.stop()]
    await checkpoints
    if (ends.some(({ code }) => code !== 0)) return `ended with ${JSON.stringify(ends)}`
    for (const disk of ['stays', 'comes', 'grows'] as const) {
      const ours = await content(round, primary, disk)
      if (!ours.equals(await content(round, secondary, disk))) return `images of ${disk} differ`
      const history = histories.get(disk)!
      const violation = history.violation(ours, lastBounds(history))
      if (violation !== undefined) return `the image of ${disk}: ${violation}`
    }
    const history = histories.get('leaves')!
    const left = history.violation(await content(round, primary, 'leaves'), lastBounds(history))
    return left === undefined ? round.violations[0] : `the disk that left: ${left}`
  } finally {
    await scope.end()
  }
}

/** The primary stays dead: the secondary has one checkpoint of all disks that checkpoints have, and serves no other. */
async function takesOver(seed: number): Promise<string | undefined> {
  const round = new Round(seed)
  const { random, scope, histories } = round
  try {
    await round.start()
    const { primary, secondary } = round.hosts
    const killed = round.killAfter(1 + below(random, 1500), [primary])
    const checkpoints = round.takeCheckpoints()
    await changeAll(round)
    await killed
    await checkpoints
    await primary.present.server.child.end()
    await linkLost(secondary.present.qmp)
    await secondary.present.qmp.execute('replication-promote')
    const { checkpoint } = await groupState(secondary.present.qmp)
    const bounds = round.checkpoints.get(checkpoint)
    if (bounds === undefined) return `promoted at checkpoint ${checkpoint}, which nobody took`
    const served = new Map<Disk, Buffer>()
    for (const { name, standing } of await round.statuses(secondary)) {
      const disk = name as Disk
      const reading = round.read(secondary, disk)
      if (standing !== 'whole') {
        const outcome = await reading.then(
          () => 'served',
          () => 'refused',
        )
        if (outcome === 'served') return `disk ${disk} is ${standing}, and served`
        continue
      }
      const violation = histories.get(disk)!.violation(await reading, bounds.get(disk)!)
      if (violation !== undefined) return `disk ${disk}, checkpoint ${checkpoint}: ${violation}`
      served.set(disk, await reading)
    }
    if (!served.has('stays')) return 'a disk that stays is not served'
    const { code } = await secondary.present.server.stop()
    if (code !== 0) return `the promoted secondary ended with ${String(code)}`
    for (const [disk, bytes] of served)
      if (!(await content(round, secondary, disk)).equals(bytes))
        return `the image of ${disk} is not what was served`
    return round.violations[0]
  } finally {
    await scope.end()
  }
}

killRounds(t, 'disks change while hosts are killed, and nothing is lost', 3, hostsDie)
killRounds(
  t,
  'disks change while a primary is killed: its secondary has a checkpoint',
  3,
  takesOver,
)
