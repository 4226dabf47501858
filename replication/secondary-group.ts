/**
 * The shell around a secondary's machine: moves frames into the layers of the disks, keeps time, carries out effects.
 * Decides nothing but when to stop reading for want of memory.
 *
 * Invariant 20: received epochs stay within the group's memory. While committed epochs are being flushed the link is
 * not read (the primary slows down); an epoch that alone outgrows the memory is given up, loudly.
 */

import type { BlockDevice } from '../core/block-device.ts'
import { asFault, Fault } from '../core/fault.ts'
import { isPromise, type MaybePromise } from '../core/maybe-promise.ts'
import { DiskLayers } from '../ramdisk/disk-layers.ts'
import { PageMemory } from '../ramdisk/page-memory.ts'
import { every, type GroupEnvironment, type Link, type LinkHandlers } from './environment.ts'
import type { CheckpointResult, GroupStatus, ReplicationGroup } from './group.ts'
import { MEMORY_LOG, type EpochLog } from './journal/epoch-log.ts'
import { MOST_BACKLOG } from './journal/journal.ts'
import { recoverJournal } from './journal/recover-group.ts'
import type { ReplicaState } from './journal/records.ts'
import type { LinkTaker } from './listener.ts'
import { PUNCH, type Frame } from './machine/frame.ts'
import type { Hello } from './machine/handshake.ts'
import {
  SecondaryMachine,
  type SecondaryEffect,
  type SecondaryInput,
  type SecondarySettings,
} from './machine/secondary.ts'
import { Requests } from './requests.ts'
import { SecondaryDisk } from './secondary-disk.ts'
import { CHECKPOINT_TIMEOUT_MS, type GroupSettings } from './settings.ts'

/** How long an active copy waits before it tries again to write its journal. */
const RETRY_MS = 1000

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
  #log: EpochLog = MEMORY_LOG
  #restarting = false
  /** Commits that the log has been asked for and has not answered. */
  readonly #committing = new Set<Promise<void>>()
  /** Whether data was received since the last marker or discard. */
  #received = false
  /** Whether no recovery can bring back what is older than the active guest's writes. */
  #retired: MaybePromise<void> | 'not yet' = undefined
  #nextLink = 1
  #stopTicking: (() => void) | undefined
  /** Frames that wait for memory, with payloads of their own, since the link reuses its own. */
  #held: { link: number; frames: Frame[] } | undefined
  /** What is wrong now, by what it concerns; each goes when that works again. */
  readonly #errors = new Map<string, string>()
  /** Ends the draining of a disk that cannot be drained. */
  readonly #giveUp = new Map<SecondaryDisk, (error: string) => void>()
  #stopping = false
  #closing: Promise<void> | undefined

  constructor(settings: GroupSettings, environment: GroupEnvironment) {
    this.name = settings.group
    this.#settings = settings
    this.#environment = environment
    this.memory = new PageMemory(settings.memory)
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
    for (const disk of this.#disks) disk.wake()
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
        this.#report(`disk ${name}`, error)
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
    this.#stopTicking = every(this.#environment.timers, this.#settings.heartbeatMs / 2, () =>
      this.#tick(),
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
      onFailure: (fault) => this.#logFailed(fault),
    })
    this.#log = journal
    this.#trim()
    this.#machine = this.#newMachine({ ...state, committed }, journal.replica)
    if (!this.active) return
    this.#environment.logger.warn(
      { group: this.name, term: state.term, checkpoint: committed },
      'this side was promoted before it was restarted: it is the active copy, whatever its configured role',
    )
    this.#activate()
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
      error: [...this.#errors.values()][0] ?? null,
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
      frame: (frame) => this.#receive(number, frame),
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
    await Promise.allSettled(this.#committing)
    const lost = await Promise.all(this.#disks.map((disk) => this.#drain(disk)))
    for (const { layers } of this.#disks) await layers.close()
    await this.#log.close()
    const [first] = lost.filter((fault) => fault !== undefined)
    if (first !== undefined) throw first
  }

  /**
   * Resolves when an active copy's writes survive a crash once the image has them: until what is older is in the
   * images of all disks, the journal would bring it back over them. It is told so until it has understood.
   * @throws Fault SHUTDOWN when the group is closed before
   */
  settled(): MaybePromise<void> {
    if (this.#retired !== 'not yet') return this.#retired
    this.#retired = this.#retire()
    return this.#retired
  }

  async #retire(): Promise<void> {
    for (const { layers } of this.#disks) await layers.idle()
    for (;;) {
      try {
        await this.#log.retire()
        this.#retired = undefined
        return
      } catch (error) {
        const fault = asFault(error, 'IO', 'the journal cannot be written')
        if (this.#closing !== undefined) throw fault
        this.#report('journal', fault.message)
        await new Promise<void>((resolve) => {
          this.#environment.timers.after(RETRY_MS, resolve)
        })
      }
    }
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
    if (this.#held !== undefined) this.#step({ type: 'heartbeat', link: this.#held.link, nowMs })
    this.#step({ type: 'tick', nowMs })
    this.#step({ type: 'held', bytes: this.memory.bytesInUse })
  }

  #receive(link: number, frame: Frame): void {
    if (this.#held?.link === link) {
      this.#held.frames.push({ ...frame, payload: Buffer.from(frame.payload) })
      return
    }
    this.#handle(link, frame)
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

  #store(link: number, frame: Frame): void {
    if (!this.#hasRoom(frame.payload.length)) return this.#waitForRoom(link, frame)
    const disk = this.#machine.diskOf(link, frame)
    if (typeof disk === 'string') throw new Fault('PROTOCOL', disk)
    const layers = this.#disks[disk]?.layers
    if (frame.type === 'write') layers?.receiveWrite(frame.payload, frame.position)
    else layers?.receiveZero(frame.position, frame.extent, (frame.flags & PUNCH) !== 0)
    this.#received = true
    this.#log.append({ ...frame, disk })
  }

  #hasRoom(bytes: number): boolean {
    return (
      this.memory.canHold(bytes) &&
      this.#log.backlog < MOST_BACKLOG &&
      this.#log.bytes < this.#settings.journal
    )
  }

  /** Committed epochs give room back once they are in the images; if there are none, waiting would be for ever. */
  #waitForRoom(link: number, frame: Frame): void {
    const isWriting = this.#log.backlog > 0
    if (!isWriting && !this.#disks.some(({ layers }) => layers.isBusy))
      return this.#step({ type: 'overflow', localBytes: this.localBytes })
    this.#held = { link, frames: [{ ...frame, payload: Buffer.from(frame.payload) }] }
    this.#links.get(link)?.pause()
    if (isWriting) this.#log.whenDrained(() => this.#retryHeld())
    else this.memory.whenReleased(() => this.#retryHeld())
  }

  #flushed(disk: SecondaryDisk, checkpoint: number): void {
    const { logger } = this.#environment
    logger.debug({ group: this.name, disk: disk.name, checkpoint }, 'checkpoint is in the image')
    disk.flushed = checkpoint
    this.#errors.delete(`disk ${disk.name}`)
    this.#trim()
    // An epoch of zeroes alone has no memory to give back, but room in the journal.
    this.#retryHeld()
  }

  #trim(): void {
    this.#log.flushed(Math.min(...this.#disks.map(({ flushed }) => flushed)))
  }

  #logFailed(fault: Fault): void {
    for (const { layers } of this.#disks) layers.discardCut()
    this.#report('journal', fault.message)
    this.#step({ type: 'log-failed', reason: fault.message })
  }

  #retryHeld(): void {
    const held = this.#held
    if (held === undefined) return
    this.#held = undefined
    const link = this.#links.get(held.link)
    if (link === undefined) return
    link.resume()
    // Whoever gave the memory back has nothing to do with what comes of these frames: faults end the link here.
    try {
      for (const frame of held.frames) if (!link.closed) this.#receive(held.link, frame)
    } catch (error) {
      if (!(error instanceof Fault)) throw error
      link.close(error.message)
    }
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
        return this.#discard()
      case 'commit':
        return this.#commit(effect.checkpoint)
      case 'note':
        return this.#log.note(effect.state)
      case 'remember':
        return this.#remember(effect.state)
      case 'restart-log':
        return this.#restartLog()
      case 'activate':
        return this.#activate()
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

  /** All disks at once, in one turn of the event loop: nobody sees one sealed and another not. */
  #commit(checkpoint: number): void {
    const startedMs = this.#environment.nowMs()
    for (const { layers } of this.#disks) layers.cut()
    this.#received = false
    const committed = (): void => {
      for (const { layers } of this.#disks) layers.seal(checkpoint)
      const commitUs = Math.round((this.#environment.nowMs() - startedMs) * 1000)
      this.#errors.delete('journal')
      this.#step({ type: 'committed', checkpoint, commitUs })
    }
    const committing = this.#log.commit(checkpoint)
    if (!isPromise(committing)) return committed()
    const ended = committing.then(committed, (error: unknown) => {
      // The log says that it has failed by itself, once for all commits.
      if (!(error instanceof Fault)) throw error
    })
    this.#committing.add(ended)
    void ended.finally(() => this.#committing.delete(ended))
  }

  #discard(): void {
    this.#held = undefined
    for (const { layers } of this.#disks) layers.discardPending()
    if (this.#received) this.#log.discard()
    this.#received = false
  }

  #remember(state: ReplicaState): void {
    const done = (): void => this.#step({ type: 'remembered' })
    const remembering = this.#log.persist(state)
    if (!isPromise(remembering)) return done()
    void remembering.then(done, (error: unknown) => {
      const { message } = asFault(error, 'IO', 'the promotion cannot be recorded')
      this.#step({ type: 'remember-failed', reason: message })
    })
  }

  #restartLog(): void {
    if (this.#restarting) return
    this.#restarting = true
    void this.#log.restart().then(
      () => {
        this.#restarting = false
        this.#step({ type: 'log-restarted' })
      },
      (error: unknown) => {
        this.#restarting = false
        const { message } = asFault(error, 'IO', 'the journal cannot be begun again')
        this.#step({ type: 'log-failed', reason: message })
      },
    )
  }

  #activate(): void {
    for (const { layers } of this.#disks) layers.activate()
    if (!this.#log.durable) return
    this.#retired = 'not yet'
    void Promise.resolve(this.settled()).catch((error: unknown) => {
      if (!(error instanceof Fault)) throw error
    })
  }

  /** Says what is wrong with `what`, once for as long as it is. */
  #report(what: string, error: string): void {
    if (error === this.#errors.get(what)) return
    this.#errors.set(what, error)
    this.#environment.logger.error({ group: this.name, error }, 'replication error')
    this.#environment.onEvent({ event: 'REPLICATION_ERROR', data: { group: this.name, error } })
  }
}
