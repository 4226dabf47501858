/**
 * The shell around a secondary's machine: moves frames into the layers of the disks, keeps time, carries out effects.
 * Decides nothing but when to stop reading for want of memory.
 *
 * Invariant 20: received epochs stay within the group's memory. While committed epochs are being flushed the link is
 * not read (the primary slows down); an epoch that alone outgrows the memory is given up, loudly.
 */

import type { BlockDevice } from '../core/block-device.ts'
import { Fault } from '../core/fault.ts'
import type { MaybePromise } from '../core/maybe-promise.ts'
import { DiskLayers } from '../ramdisk/disk-layers.ts'
import { PageMemory } from '../ramdisk/page-memory.ts'
import { every, type GroupEnvironment, type Link, type LinkHandlers } from './environment.ts'
import { EpochKeeper } from './epoch-keeper.ts'
import type { CheckpointResult, GroupStatus, ReplicationGroup } from './group.ts'
import { Intake } from './intake.ts'
import { MEMORY_LOG, type EpochLog } from './journal/epoch-log.ts'
import { recoverJournal } from './journal/recover-group.ts'
import type { LinkTaker } from './listener.ts'
import { PUNCH, type Frame } from './machine/frame.ts'
import type { Hello } from './machine/handshake.ts'
import type { SecondaryEffect, SecondaryInput, SecondarySettings } from './machine/secondary-io.ts'
import { SecondaryMachine } from './machine/secondary.ts'
import { Requests } from './requests.ts'
import { SecondaryDisk } from './secondary-disk.ts'
import { CHECKPOINT_TIMEOUT_MS, type GroupSettings } from './settings.ts'
import { Troubles } from './troubles.ts'

/** The part of the memory that data may fill; the rest is for the index over it. */
const DATA_SHARE = 0.85
/** The part of it that the secondary's own guests may fill. */
const LOCAL_SHARE = 0.5

export class SecondaryGroup implements ReplicationGroup, LinkTaker {
  readonly name: string
  readonly memory: PageMemory
  readonly #settings: GroupSettings
  readonly #environment: GroupEnvironment
  readonly #disks: SecondaryDisk[] = []
  readonly #checkpoints = new Requests<CheckpointResult>()
  readonly #promotions = new Requests<GroupStatus>()
  readonly #links = new Map<number, Link>()
  #machine: SecondaryMachine
  #log: EpochKeeper
  readonly #intake: Intake
  readonly #troubles: Troubles
  #nextLink = 1
  #stopTicking: (() => void) | undefined
  /** Ends the draining of a disk that cannot be drained. */
  readonly #giveUp = new Map<SecondaryDisk, (error: string) => void>()
  #stopping = false
  #closing: Promise<void> | undefined

  constructor(settings: GroupSettings, environment: GroupEnvironment) {
    this.name = settings.group
    this.#settings = settings
    this.#environment = environment
    this.memory = new PageMemory(settings.memory)
    this.#troubles = new Troubles(settings.group, environment)
    this.#log = this.#keeper(MEMORY_LOG)
    this.#intake = new Intake({
      hasRoom: (bytes) => this.#hasRoom(bytes),
      awaitRoom: (wake) => this.#awaitRoom(wake),
      handle: (link, frame) => this.#handle(link, frame),
      overflow: () => this.#step({ type: 'overflow', localBytes: this.localBytes }),
      linkOf: (number) => this.#links.get(number),
    })
    this.#machine = this.#newMachine()
  }

  get active(): boolean {
    return this.#machine.role === 'active'
  }

  get stopping(): boolean {
    return this.#stopping
  }

  get localLimit(): number {
    return Math.floor(this.#settings.memory * DATA_SHARE * LOCAL_SHARE)
  }

  get localBytes(): number {
    return this.#disks.reduce((sum, { layers }) => sum + layers.localBytes, 0)
  }

  /** The server is being shut down: requests that wait are refused, and so are commands. */
  stop(): void {
    this.#stopping = true
    this.#log.stop()
    for (const disk of this.#disks) {
      disk.wake()
      if (this.#troubles.concerns(`disk ${disk.name}`)) disk.giveUp()
    }
  }

  get useObjection(): string | undefined {
    if (this.#settings.mode === 'colo' || this.active) return undefined
    return `this is the secondary of remus group "${this.name}", which serves nothing until it is promoted`
  }

  /** Adds a disk; only before start(). */
  attach(name: string, below: BlockDevice): BlockDevice {
    const layers = new DiskLayers({
      image: below,
      memory: this.memory,
      timers: this.#environment.timers,
      onFlushed: (checkpoint) => this.#flushed(disk, checkpoint),
      onError: (fault) => {
        const error = `disk "${name}" cannot take a committed checkpoint yet: ${fault.message}`
        this.#giveUp.get(disk)?.(error)
        if (this.#stopping) disk.giveUp()
        this.#troubles.report(`disk ${name}`, error)
      },
    })
    const disk = new SecondaryDisk(name, below, layers, this)
    this.#disks.push(disk)
    this.#machine = this.#newMachine()
    return disk
  }

  /** @throws Fault when there is a journal that cannot be used */
  async start(): Promise<void> {
    if (this.#settings.durability === 'journal') await this.#recover()
    else if (await this.#environment.hasSegments(this.name)) throw this.#forgetsJournal()
    this.#stopTicking = every(this.#environment.timers, this.#settings.heartbeatMs / 2, () =>
      this.#tick(),
    )
  }

  #forgetsJournal(): Fault {
    return new Fault(
      'NOT_PERMITTED',
      'this group has a journal, which durability=memory would forget',
      {
        where: `group ${this.name}`,
        remedy:
          'leave durability=memory out; or move the folder of the group away, if its images are right as they are',
      },
    )
  }

  /** Brings back what the journal holds: committed epochs lie over the images as if they had just been committed. */
  async #recover(): Promise<void> {
    const { journal, state, committed } = await recoverJournal({
      group: this.name,
      disks: this.#disks,
      memory: this.memory,
      environment: this.#environment,
      limit: this.#settings.journal,
      onFailure: (fault) => this.#log.failed(fault),
    })
    this.#log = this.#keeper(journal)
    for (const [index, { flushed }] of this.#disks.entries()) this.#log.flushed(index, flushed)
    this.#machine = this.#newMachine({ ...state, committed }, journal.replica)
    if (!this.active) return
    this.#environment.logger.warn(
      { group: this.name, term: state.term, checkpoint: committed },
      'this side was promoted before it was restarted: it is the active copy, whatever its configured role',
    )
    this.#log.activate()
  }

  status(): GroupStatus {
    const machine = this.#machine
    return {
      group: this.name,
      mode: this.#settings.mode,
      role: machine.role,
      protection: machine.protection,
      reason: machine.reason,
      heals: true,
      checkpoint: machine.committed,
      term: machine.term,
      durable: this.#log.durable,
      peer: machine.peer,
      disks: this.#disks.map(({ name, geometry, layers }) => ({
        name,
        size: geometry.size,
        dirtyBytes: layers.pendingBytes,
      })),
      ramdiskBytes: this.memory.bytesInUse,
      journalBytes: this.#log.bytes,
      error: this.#troubles.first,
    }
  }

  checkpoint(timeoutMs = CHECKPOINT_TIMEOUT_MS): Promise<CheckpointResult> {
    return this.#checkpoints.open((request) =>
      this.#step({
        type: 'await-checkpoint',
        request,
        timeoutMs,
        nowMs: this.#environment.nowMs(),
      }),
    )
  }

  promote(force: boolean): Promise<GroupStatus> {
    if (this.#stopping)
      return Promise.reject(
        new Fault('SHUTDOWN', 'the server is being shut down', { where: `group ${this.name}` }),
      )
    return this.#promotions.open((request) => this.#step({ type: 'promote', request, force }))
  }

  setReplicating(on: boolean): void {
    this.#step({ type: 'set-replicating', on })
  }

  take(link: Link, hello: Hello): LinkHandlers {
    const number = this.#nextLink
    this.#nextLink += 1
    this.#links.set(number, link)
    this.#step({
      type: 'hello',
      nowMs: this.#environment.nowMs(),
      link: number,
      peer: link.peer,
      hello,
    })
    if (link.closed) this.#links.delete(number)
    return {
      frame: (frame) => this.#intake.receive(number, frame),
      closed: (reason) => {
        this.#links.delete(number)
        this.#step({ type: 'link-down', link: number, reason })
      },
    }
  }

  /** The first disk that closes ends the group: its disks are one. */
  detach(): Promise<void> {
    this.#closing ??= this.#close()
    return this.#closing
  }

  /** Committed checkpoints reach the images first, as far as the images take them; what was not committed is dropped. */
  async #close(): Promise<void> {
    this.#stopTicking?.()
    for (const link of this.#links.values()) link.close('the secondary is shutting down')
    await this.#log.quiet()
    const lost = await Promise.all(this.#disks.map((disk) => this.#drain(disk)))
    const drained = [...this.#disks.keys()].filter((disk) => !this.#disks[disk]?.layers.isBusy)
    for (const { layers } of this.#disks) await layers.close()
    await this.#log.close(drained)
    const first = lost.find((fault) => fault !== undefined)
    if (first !== undefined) throw first
  }

  settled(disk: SecondaryDisk): MaybePromise<void> {
    return this.#log.settled(this.#disks.indexOf(disk))
  }

  /**
   * A disk that fails while it is being drained would hold up the shutdown for ever: say what is lost instead.
   * @returns the loss; none where the journal has what the image lacks
   */
  async #drain(disk: SecondaryDisk): Promise<Fault | undefined> {
    const { name, layers } = disk
    const failed = new Promise<string>((resolve) => {
      this.#giveUp.set(disk, resolve)
    })
    const error = await Promise.race([layers.idle().then(() => undefined), failed])
    if (error === undefined) return undefined
    const what = `${layers.unflushedBytes} committed bytes did not reach the image`
    this.#environment.logger.error({ group: this.name, disk: name, error }, what)
    if (this.#log.durable) return undefined
    return new Fault('IO', `${what}: ${error}`, {
      where: name,
      remedy: 'this image is not a checkpoint: copy it anew from the primary',
    })
  }

  #keeper(log: EpochLog): EpochKeeper {
    const { timers } = this.#environment
    return new EpochKeeper(log, this.#settings.journal, {
      timers,
      troubles: this.#troubles,
      layers: () => this.#disks.map(({ layers }) => layers),
      nowMs: () => this.#environment.nowMs(),
      step: (input) => this.#step(input),
    })
  }

  #newMachine(
    remembered?: SecondarySettings['remembered'],
    incarnation = this.#environment.incarnation,
  ): SecondaryMachine {
    const { group, mode, heartbeatMs, timeoutMs, memory } = this.#settings
    const disks = this.#disks.map(({ name, geometry }) => ({ name, size: geometry.size }))
    return new SecondaryMachine({
      durable: this.#log.durable,
      ...(remembered === undefined ? {} : { remembered }),
      group,
      mode,
      heartbeatMs,
      timeoutMs,
      disks,
      incarnation,
      capacity: Math.floor(memory * DATA_SHARE),
    })
  }

  #tick(): void {
    const nowMs = this.#environment.nowMs()
    // A link that is not read for want of memory cannot show signs of life.
    const { heldLink } = this.#intake
    if (heldLink !== undefined) this.#step({ type: 'heartbeat', link: heldLink, nowMs })
    this.#step({ type: 'tick', nowMs })
    this.#step({ type: 'held', bytes: this.memory.bytesInUse })
  }

  #handle(link: number, frame: Frame): void {
    switch (frame.type) {
      case 'write':
      case 'zero':
        return this.#store(link, frame)
      case 'checkpoint':
        return this.#step({
          type: 'checkpoint',
          link,
          checkpoint: frame.position,
          nowMs: this.#environment.nowMs(),
        })
      case 'heartbeat':
        return this.#step({ type: 'heartbeat', link, nowMs: this.#environment.nowMs() })
      case 'refuse':
        return this.#links.get(link)?.close('the primary refused')
      case 'hello':
      case 'done':
      case 'pressure':
      case 'discard':
      case 'state':
      case 'segment':
        throw new Fault('PROTOCOL', `the primary sent a ${frame.type} frame out of place`)
    }
  }

  /** @throws Fault to end the link */
  #store(link: number, frame: Frame): void {
    const disk = this.#machine.diskOf(link, frame)
    if (typeof disk === 'string') throw new Fault('PROTOCOL', disk)
    const layers = this.#disks[disk]?.layers
    if (frame.type === 'write') layers?.receiveWrite(frame.payload, frame.position)
    else layers?.receiveZero(frame.position, frame.extent, (frame.flags & PUNCH) !== 0)
    this.#log.append({ ...frame, disk })
  }

  #hasRoom(bytes: number): boolean {
    return this.memory.canHold(bytes) && this.#log.hasRoom
  }

  /** Committed epochs give room back once they are in the images; if there are none, waiting would be for ever. */
  #awaitRoom(wake: () => void): boolean {
    if (this.#log.awaitWritten(wake)) return true
    if (!this.#disks.some(({ layers }) => layers.isBusy)) return false
    this.memory.whenReleased(wake)
    return true
  }

  #flushed(disk: SecondaryDisk, checkpoint: number): void {
    const { logger } = this.#environment
    logger.debug({ group: this.name, disk: disk.name, checkpoint }, 'checkpoint is in the image')
    disk.flushed = checkpoint
    this.#troubles.over(`disk ${disk.name}`)
    this.#log.flushed(this.#disks.indexOf(disk), checkpoint)
    // An epoch of zeroes alone has no memory to give back, but room in the journal.
    this.#intake.retry()
  }

  #step(input: SecondaryInput): void {
    for (const effect of this.#machine.step(input)) this.#perform(effect)
  }

  #perform(effect: SecondaryEffect): void {
    switch (effect.type) {
      case 'send':
        return this.#links.get(effect.link)?.send(effect.frame)
      case 'close-link':
        return this.#links.get(effect.link)?.close(effect.reason)
      case 'discard':
        this.#intake.discard()
        return this.#log.discard()
      case 'commit':
        return this.#log.commit(effect.checkpoint)
      case 'note':
        return this.#log.note(effect.state)
      case 'remember':
        return this.#log.remember(effect.state)
      case 'restart-log':
        return this.#log.restart()
      case 'activate':
        return this.#log.activate()
      case 'promoted':
        return this.#promotions.resolve(effect.request, this.status())
      case 'promote-refused':
        return this.#promotions.reject(
          effect.request,
          new Fault('NOT_PERMITTED', effect.reason, { where: `group ${this.name}` }),
        )
      case 'checkpoint-done':
        return this.#checkpoints.resolve(effect.request, effect.result)
      case 'checkpoint-failed':
        return this.#checkpoints.reject(
          effect.request,
          new Fault(effect.code, effect.reason, { where: `group ${this.name}` }),
        )
      case 'event':
        return this.#environment.onEvent(effect.event)
    }
  }
}
