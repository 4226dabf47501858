/** Both sides of a group as the program builds them, on virtual time, a virtual network and virtual images. */

import { strict as expect } from 'node:assert'

import type { BlockDevice } from '../../core/block-device.ts'
import { SILENT } from '../../core/logger.ts'
import type { GroupEnvironment } from '../../replication/environment.ts'
import type { GroupEvent } from '../../replication/group.ts'
import type { Frame } from '../../replication/machine/frame.ts'
import { PrimaryGroup } from '../../replication/primary-group.ts'
import { SecondaryDisk } from '../../replication/secondary-disk.ts'
import { SecondaryGroup } from '../../replication/secondary-group.ts'
import type { GroupSettings } from '../../replication/settings.ts'
import { Guest } from './guest.ts'
import { VirtualImage, type Conduct } from './image.ts'
import { Network } from './network.ts'
import { JournalDisk } from './segments.ts'
import type { Plan } from './plan.ts'
import { Random } from './random.ts'
import { Registers } from './registers.ts'
import { Scheduler, type Life } from './scheduler.ts'
import { sectorsOf } from './sectors.ts'

const HEARTBEAT_MS = 60
export const TIMEOUT_MS = 240

/** What both sides have: a process, its images, and what its guest may find there. */
interface Side {
  readonly life: Life
  readonly images: readonly VirtualImage[]
  readonly registers: readonly Registers[]
  readonly guest: Guest
  /** Whether it was ever connected to the other side. */
  met: boolean
}

export interface PrimarySide extends Side {
  readonly group: PrimaryGroup
}

export interface SecondarySide extends Side {
  /** Whether it has recovered what it remembers. */
  started: boolean
  readonly group: SecondaryGroup
  readonly disks: readonly SecondaryDisk[]
}

/** Told of what happens inside, at the instant at which it does. */
export interface Observer {
  primarySends(frame: Readonly<Frame>): void
  secondarySends(frame: Readonly<Frame>): void
  secondaryEvent(event: GroupEvent): void
  secondaryStarted(side: SecondarySide): void
}

export class World {
  readonly plan: Plan
  readonly random: Random
  readonly scheduler = new Scheduler()
  readonly network: Network
  readonly journal: JournalDisk
  readonly nobody: Life = { name: 'world', alive: true }
  primary: PrimarySide
  secondary: SecondarySide
  readonly #observer: Observer
  #tag = 1000
  #lives = 0

  constructor(plan: Plan, observer: Observer) {
    this.plan = plan
    this.random = new Random(plan.seed + 1)
    this.#observer = observer
    this.journal = new JournalDisk(this)
    this.network = new Network({
      scheduler: this.scheduler,
      random: this.random,
      slowestMs: plan.travelMs,
      sent: (from, frame) => this.#sent(from, frame),
    })
    const contents = plan.disks.map((sectors, disk) =>
      Buffer.concat(Array.from({ length: sectors }, (_, at) => sectorsOf(disk * 100 + at + 1, 1))),
    )
    this.primary = this.startPrimary(contents)
    this.secondary = this.startSecondary(contents)
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

  startPrimary(contents: readonly Buffer[]): PrimarySide {
    const life = this.#newLife('primary')
    const images = this.#imagesOf(contents, life, 'primary')
    const group = new PrimaryGroup(
      this.#settings(),
      this.#environment(life, (event) => {
        if (event.event === 'REPLICATION_LINK' && event.data.up) side.met = true
      }),
      this.network.dial(life),
    )
    const disks = images.map((image, index) => group.attach(`disk${index}`, image))
    const side = { ...this.#side(life, images, disks), group }
    void group.start()
    return side
  }

  startSecondary(contents: readonly Buffer[]): SecondarySide {
    const life = this.#newLife('secondary')
    const images = this.#imagesOf(contents, life, 'secondary')
    const group = new SecondaryGroup(
      this.#settings(),
      this.#environment(life, (event) => {
        if (event.event === 'REPLICATION_LINK' && event.data.up) side.met = true
        this.#observer.secondaryEvent(event)
      }),
    )
    const disks = images.map((image, index) => {
      const disk = group.attach(`disk${index}`, image)
      expect(disk instanceof SecondaryDisk)
      return disk
    })
    const side: SecondarySide = { ...this.#side(life, images, disks), group, disks, started: false }
    group.start().then(
      () => {
        side.started = true
        this.#observer.secondaryStarted(side)
        this.network.listener = { life, take: (link, hello) => group.take(link, hello) }
      },
      (error: unknown) => {
        if (!this.journal.hasFailed) return this.scheduler.fail(error)
        // Whoever supervises the process starts it again.
        this.crash(side, true)
        this.scheduler.after(this.random.delay(50, 200), this.nobody, 'start again', () => {
          if (side === this.secondary)
            this.secondary = this.startSecondary(side.images.map(({ bytes }) => bytes))
        })
      },
    )
    return side
  }

  /** The process ends without a word; `told`: its kernel says so to the peer. */
  crash(side: Side, told: boolean): void {
    side.life.alive = false
    this.network.crash(side.life, told)
    if (side === this.secondary) this.journal.crash()
    for (const image of side.images) image.crash()
  }

  #newLife(name: string): Life {
    this.#lives += 1
    return { name: `${name} ${this.#lives}`, alive: true }
  }

  #settings(): GroupSettings {
    const { mode, memory, durability } = this.plan
    return {
      group: 'vm',
      mode,
      memory,
      durability,
      journal: this.plan.journalBytes,
      host: 'virtual',
      port: 1,
      heartbeatMs: HEARTBEAT_MS,
      timeoutMs: TIMEOUT_MS,
    }
  }

  #environment(life: Life, onEvent: (event: GroupEvent) => void): GroupEnvironment {
    const { scheduler } = this
    return {
      logger: SILENT,
      incarnation: life.name,
      timers: scheduler.timers(life),
      hasSegments: () => Promise.resolve(false),
      openSegments: () => Promise.resolve(this.journal.open(life)),
      nowMs: () => scheduler.nowMs,
      onEvent: (event) => {
        if (scheduler.trace !== undefined)
          scheduler.note(`${life.name} EVENT ${event.event} ${JSON.stringify(event.data)}`)
        onEvent(event)
      },
    }
  }

  #imagesOf(
    contents: readonly Buffer[],
    life: Life,
    side: 'primary' | 'secondary',
  ): readonly VirtualImage[] {
    const conduct = this.conductOf(side)
    return contents.map((content) => new VirtualImage(content, this, life, conduct))
  }

  #side(life: Life, images: readonly VirtualImage[], disks: readonly BlockDevice[]): Side {
    const registers = images.map(({ completed }) => new Registers(completed))
    const guest = new Guest({
      scheduler: this.scheduler,
      random: this.random,
      life,
      disks,
      registers,
      nextTag: () => (this.#tag += 1),
      mayFail: (code) => {
        if (code === 'IO') return images.some(({ hasFailed }) => hasFailed)
        if (code === 'NOT_SUPPORTED') return images.some(({ conduct }) => !conduct.zeroes)
        return code === 'NOT_PERMITTED' && this.mayRefuse(life)
      },
      slowestMs: this.plan.thinkMs,
    })
    return { life, images, registers, guest, met: false }
  }

  /** Whether a side may refuse its guest's requests: when it was deposed, or is a passive copy that serves nothing. */
  mayRefuse(life: Life): boolean {
    const { primary, secondary, plan } = this
    if (life === primary.life) return primary.group.machine.writeObjection !== undefined
    return plan.mode === 'remus' && !secondary.group.active
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
