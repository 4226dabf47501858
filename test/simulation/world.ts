/** Both sides of a group as the program builds them, on virtual time, a virtual network and virtual images. */

import { Fault } from '../../core/fault.ts'
import { SILENT } from '../../core/logger.ts'
import type { GroupEnvironment } from '../../replication/environment.ts'
import type { GroupEvent, VerifyReport } from '../../replication/group.ts'
import type { Frame } from '../../replication/machine/frame.ts'
import { ReplicaGroup } from '../../replication/replica-group.ts'
import type { SecondaryDisk } from '../../replication/secondary-disk.ts'
import type { GroupSettings } from '../../replication/settings.ts'
import { Guest } from './guest.ts'
import { VirtualImage, type Conduct } from './image.ts'
import { sightOf, type Sight } from './look.ts'
import { SideDisks } from './side-disks.ts'
import { Network } from './network.ts'
import { RegionDisk } from './region-disk.ts'
import { JournalDisk } from './segments.ts'
import type { Plan } from './plan.ts'
import { Random } from './random.ts'
import { Registers } from './registers.ts'
import { Scheduler, type Life } from './scheduler.ts'
import { StandingRules } from './standing-rules.ts'
import { SectorBuffers, sectorsOf } from './sectors.ts'

const HEARTBEAT_MS = 60
export const TIMEOUT_MS = 240
/** How long a server waits for the requests of clients that it ends. */
const DISMISS_MS = 300

export type Host = 'A' | 'B'
type Role = 'primary' | 'secondary'

/** One side: a process on a host, its images, and what its guest may find there. */
export interface Side {
  readonly host: Host
  readonly life: Life
  readonly images: readonly VirtualImage[]
  readonly journal: JournalDisk
  readonly registers: readonly Registers[]
  readonly guest: Guest
  /** Room for the oracle's looks. */
  readonly sight: Sight[]
  readonly group: ReplicaGroup
  /** What it is as a secondary, as its group has it now. */
  readonly disks: readonly SecondaryDisk[]
  readonly slots: SideDisks
  /** Whether it was ever connected to the other side. */
  met: boolean
  /** Whether it has recovered what it remembers. */
  started: boolean
  /** Requests that its guest keeps under way once it has started. */
  depth: number
}

/** Told of what happens inside, at the instant at which it does. */
export interface Observer {
  primarySends(frame: Readonly<Frame>): void
  secondarySends(frame: Readonly<Frame>): void
  writeCompleted(side: Side, slot: number, tag: number): void
  secondaryEvent(event: GroupEvent): void
  secondaryStarted(side: Side): void
  verified(report: VerifyReport): void
}

export class World {
  readonly plan: Plan
  readonly random: Random
  readonly scheduler = new Scheduler()
  readonly network: Network
  readonly journals: Readonly<Record<Host, JournalDisk>>
  readonly nobody: Life = { name: 'world', alive: true }
  /** Which side has which role at present; a story that exchanges roles exchanges them. */
  primary: Side
  secondary: Side
  readonly rules = new StandingRules(this)
  readonly regions: Readonly<Record<Host, RegionDisk>>
  readonly #observer: Observer
  readonly #buffers = new SectorBuffers()
  /** Slots whose disks the processes of a host begin with. */
  readonly #present: Readonly<Record<Host, Set<number>>>
  #tag = 1000
  readonly #started = new Set<Host>()
  #ids = 0
  #lives = 0

  constructor(plan: Plan, observer: Observer) {
    this.plan = plan
    this.random = new Random(plan.seed + 1)
    this.#observer = observer
    const present = [...plan.disks.keys()].filter((slot) => !plan.late.includes(slot))
    this.#present = { A: new Set(present), B: new Set(present) }
    this.journals = { A: new JournalDisk(this), B: new JournalDisk(this) }
    this.regions = {
      A: new RegionDisk(this, this.journals.A),
      B: new RegionDisk(this, this.journals.B),
    }
    this.network = new Network({
      scheduler: this.scheduler,
      random: this.random,
      slowestMs: plan.travelMs,
      sent: (from, frame) => this.#sent(from, frame),
    })
    const contents = plan.disks.map((sectors, disk) =>
      Buffer.concat(Array.from({ length: sectors }, (_, at) => sectorsOf(disk * 100 + at + 1, 1))),
    )
    this.primary = this.start('A', 'primary', contents)
    const others = plan.identical
      ? contents
      : contents.map((content, disk) => sectorsOf(disk * 100 + 77, content.length / 512))
    this.secondary = this.start('B', 'secondary', others)
  }

  /** The sides have exchanged their roles. */
  exchangeRoles(): void {
    ;[this.primary, this.secondary] = [this.secondary, this.primary]
  }

  conductOf(side: 'primary' | 'secondary'): Conduct {
    const { plan } = this
    return {
      failures: { read: 0, write: 0, flush: 0 },
      slowestMs: side === 'primary' ? plan.primaryDiskMs : plan.secondaryDiskMs,
      atOnce: plan.atOnce,
      zeroes: side === 'primary' || plan.secondaryZeroes,
    }
  }

  start(host: Host, role: Role, contents: readonly Buffer[]): Side {
    const life = this.#newLife(host)
    const other = host === 'A' ? 'B' : 'A'
    const images = this.#imagesOf(contents, life, role)
    const group = new ReplicaGroup(
      { ...this.#settings(role, other), identical: this.#mayClaim(host) },
      this.#environment(host, life, (event) => {
        this.rules.event(life, event)
        if (event.event === 'REPLICATION_LINK' && event.data.up) side.met = true
        if (event.event === 'REPLICATION_VERIFY') this.#observer.verified(event.data)
        if (side === this.secondary) this.#observer.secondaryEvent(event)
      }),
      this.network.dial(life, other),
    )
    const slots = new SideDisks({
      ...{ group, images, present: this.#present[host] },
      dismissed: (slot) => this.#dismissed(side, slot),
    })
    const side: Side = {
      ...this.#side(life, images, slots),
      ...{ host, group, slots, disks: group.secondary.disks, started: false, depth: 0 },
      journal: this.journals[host],
    }
    group.start().then(
      () => {
        side.started = true
        if (side.depth > 0) side.guest.start(side.depth)
        if (side === this.secondary) this.#observer.secondaryStarted(side)
        this.network.listen(host, { life, take: (link, hello) => group.take(link, hello) })
      },
      (error: unknown) => {
        if (!this.journals[host].hasFailed) return this.scheduler.fail(error)
        // What left could not be remembered in time: the operator serves it again.
        if (error instanceof Fault && error.code === 'INVALID')
          for (const slot of this.plan.disks.keys()) this.#present[host].add(slot)
        // Whoever supervises the process starts it again.
        this.crash(side, true)
        this.scheduler.after(this.random.delay(50, 200), this.nobody, 'start again', () =>
          this.restart(side, side.depth),
        )
      },
    )
    return side
  }

  /** Clients of a disk that is about to leave: no new ones come, and requests under way are waited for, but not for ever. */
  #dismissed({ guest, life }: Side, slot: number): Promise<void> {
    const latestMs = this.scheduler.nowMs + DISMISS_MS
    return new Promise((resolve) => {
      const look = (): void => {
        if (!guest.uses(slot) || this.scheduler.nowMs >= latestMs) resolve()
        else this.scheduler.after(1, life, 'dismiss', look)
      }
      look()
    })
  }

  /**
   * A new process on the host of one that is gone, unless there is one already.
   * @param depth how many requests its guest makes at a time once it has started
   */
  restart(side: Side, depth = 0): void {
    const role = side === this.primary ? 'primary' : 'secondary'
    if (this[role] !== side) return
    this[role] = this.start(
      side.host,
      role,
      side.images.map(({ bytes }) => bytes),
    )
    this[role].depth = depth
  }

  /** The process ends without a word; `told`: its kernel says so to the peer. */
  crash(side: Side, told: boolean): void {
    side.life.alive = false
    this.network.crash(side.life, told)
    this.journals[side.host].crash()
    this.regions[side.host].crash()
    for (const image of side.images) image.crash()
  }

  /** With what lived in memory goes the right to say that both sides begin alike: then only the first process does. */
  #mayClaim(host: Host): boolean {
    const { identical, durability } = this.plan
    const first = !this.#started.has(host)
    this.#started.add(host)
    return identical && (first || durability === 'journal')
  }

  #newLife(name: string): Life {
    this.#lives += 1
    return { name: `${name} ${this.#lives}`, alive: true }
  }

  #settings(role: Role, other: Host): GroupSettings {
    const { mode, memory, durability, identical, onLinkLoss, intervalMs } = this.plan
    return {
      group: 'vm',
      ...{ mode, memory, durability, identical, onLinkLoss, intervalMs, role },
      journal: this.plan.journalBytes,
      ...(this.plan.spillBytes === null ? {} : { spillBytes: this.plan.spillBytes }),
      ...(this.plan.leastWindow === null ? {} : { leastWindow: this.plan.leastWindow }),
      wire: 'colotap',
      peer: other,
      listens: true,
      heartbeatMs: HEARTBEAT_MS,
      timeoutMs: TIMEOUT_MS,
      partBytes: this.plan.partBytes,
      fence: null,
      resyncRate: 0,
      compareBytes: this.plan.compareBytes,
      comparesFirst: this.plan.comparesFirst,
      ack: this.plan.ack,
    }
  }

  #environment(host: Host, life: Life, onEvent: (event: GroupEvent) => void): GroupEnvironment {
    const { scheduler } = this
    const durable = this.plan.durability === 'journal'
    const forgetful = new RegionDisk(this, new JournalDisk(this))
    return {
      logger: SILENT,
      newId: () => `id ${(this.#ids += 1)} of ${life.name}`,
      timers: scheduler.timers(life),
      hasSegments: () => Promise.resolve(false),
      fence: () => Promise.resolve({ fenced: false, detail: '' }),
      openSegments: () => Promise.resolve(this.journals[host].open(life)),
      openRegions: (_, disk, size, fresh) => {
        const regions = durable ? this.regions[host] : forgetful
        return Promise.resolve(regions.open(life, disk, size, fresh))
      },
      removeRegions: (_, disk) => {
        this.regions[host].remove(disk)
        return Promise.resolve()
      },
      nowMs: () => scheduler.nowMs,
      onEvent: (event) => {
        if (scheduler.trace !== undefined)
          scheduler.note(`${life.name} EVENT ${event.event} ${JSON.stringify(event.data)}`)
        onEvent(event)
      },
    }
  }

  #imagesOf(contents: readonly Buffer[], life: Life, side: Role): readonly VirtualImage[] {
    const conduct = this.conductOf(side)
    return contents.map((content) => new VirtualImage(content, this, life, conduct))
  }

  #side(
    life: Life,
    images: readonly VirtualImage[],
    slots: SideDisks,
  ): Pick<Side, 'life' | 'images' | 'registers' | 'guest' | 'sight' | 'met'> {
    const registers = images.map(({ completed }) => new Registers(completed))
    const guest = new Guest({
      scheduler: this.scheduler,
      random: this.random,
      life,
      disks: slots.devices,
      registers,
      nextTag: () => (this.#tag += 1),
      mayFail: (code, slot) => {
        if (code === 'IO') {
          const { journals } = this
          return (
            images.some(({ hasFailed }) => hasFailed) ||
            journals.A.hasFailed ||
            journals.B.hasFailed
          )
        }
        if (code === 'NOT_SUPPORTED') return images.some(({ conduct }) => !conduct.zeroes)
        if (code === 'SHUTDOWN') return slots.wasRemoved(slot)
        return code === 'NOT_PERMITTED' && this.mayRefuse(life, slots, slot)
      },
      slowestMs: this.plan.thinkMs,
      burst: this.plan.burst,
      buffers: this.#buffers,
      written: (slot, tag) => {
        const side = life === this.primary.life ? this.primary : this.secondary
        this.#observer.writeCompleted(side, slot, tag)
      },
      watchers: this.rules,
    })
    const sight = images.map(({ sectors }) => sightOf(sectors))
    return { life, images, registers, guest, sight, met: false }
  }

  /** Whether a side may refuse its guest's requests: when it was deposed, or is a passive copy that serves nothing. */
  mayRefuse(life: Life, slots: SideDisks, slot: number): boolean {
    const side = life === this.primary.life ? this.primary : this.secondary
    const { primary, secondary } = side.group
    // Its clients are ended, or it is in no checkpoint.
    if (slots.wasRemoved(slot) || slots.isWithheld(slot)) return true
    if (primary !== undefined)
      return primary.machine.writeObjection !== undefined || side.group.demoting
    const { consistent, generation } = secondary.machine.state
    return this.plan.mode === 'remus' || !consistent || generation === null
  }

  #sent(from: Life, frame: Readonly<Frame>): void {
    const { position, extent, disk, payload } = frame
    if (this.scheduler.trace !== undefined)
      this.scheduler.note(
        `${from.name} sends ${frame.type} disk ${disk} at ${position} (${position / 512}) ${extent} ${payload.length}`,
      )
    if (from === this.primary.life) this.#observer.primarySends(frame)
    else if (from === this.secondary.life) this.#observer.secondarySends(frame)
  }
}
