/**
 * The shell around a secondary's machine: moves frames into the layers of the disks, keeps time, carries out effects.
 * Decides nothing but when to stop reading for want of memory.
 *
 * Invariant 20: received epochs stay within the group's memory. While committed epochs are being flushed the link is
 * not read (the primary slows down); an epoch that alone outgrows the memory is given up, loudly.
 */

import type { BlockDevice } from '../core/block-device.ts'
import { Fault } from '../core/fault.ts'
import { DiskLayers } from '../ramdisk/disk-layers.ts'
import { PageMemory } from '../ramdisk/page-memory.ts'
import { every, type GroupEnvironment, type Link, type LinkHandlers } from './environment.ts'
import type { CheckpointResult, GroupStatus, ReplicationGroup } from './group.ts'
import type { LinkTaker } from './listener.ts'
import { PUNCH, type Frame } from './machine/frame.ts'
import type { Hello } from './machine/handshake.ts'
import { SecondaryMachine, type SecondaryEffect, type SecondaryInput } from './machine/secondary.ts'
import { Requests } from './requests.ts'
import { SecondaryDisk } from './secondary-disk.ts'
import { CHECKPOINT_TIMEOUT_MS, type GroupSettings } from './settings.ts'

/** The part of the memory that data may fill; the rest is for the index over it. */
const DATA_SHARE = 0.85

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
  #nextLink = 1
  #stopTicking: (() => void) | undefined
  /** Frames that wait for memory, with payloads of their own, since the link reuses its own. */
  #held: { link: number; frames: Frame[] } | undefined
  #error: string | null = null
  #giveUp: ((error: string) => void) | undefined
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
      onFlushed: (checkpoint) =>
        this.#environment.logger.debug(
          { group: this.name, disk: name, checkpoint },
          'checkpoint is in the image',
        ),
      onError: (fault) =>
        this.#report(`disk "${name}" cannot take a committed checkpoint yet: ${fault.message}`),
    })
    const disk = new SecondaryDisk(name, below, layers, this)
    this.#disks.push(disk)
    this.#machine = this.#newMachine()
    return disk
  }

  start(): Promise<void> {
    this.#stopTicking = every(this.#environment.timers, this.#settings.heartbeatMs / 2, () =>
      this.#tick(),
    )
    return Promise.resolve()
  }

  status(): GroupStatus {
    const machine = this.#machine
    return {
      group: this.name,
      mode: this.#settings.mode,
      role: machine.role,
      protection: machine.protection,
      reason: machine.reason,
      checkpoint: machine.committed,
      term: machine.term,
      durable: false,
      peer: machine.peer,
      disks: this.#disks.map(({ name, geometry, layers }) => ({
        name,
        size: geometry.size,
        dirtyBytes: layers.pendingBytes,
      })),
      ramdiskBytes: this.memory.bytesInUse,
      error: this.#error,
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
    for (const disk of this.#disks) await this.#drain(disk)
    for (const { layers } of this.#disks) await layers.close()
  }

  /** A disk that fails while it is being drained would hold up the shutdown for ever: say what is lost instead. */
  async #drain({ name, layers }: SecondaryDisk): Promise<void> {
    const failed = new Promise<string>((resolve) => {
      this.#giveUp = resolve
    })
    const error = await Promise.race([layers.idle().then(() => undefined), failed])
    if (error === undefined) return
    const bytes = layers.unflushedBytes
    this.#environment.logger.error(
      { group: this.name, disk: name, bytes, error },
      'committed data did not reach the image',
    )
  }

  #newMachine(): SecondaryMachine {
    const { group, mode, heartbeatMs, timeoutMs, memory } = this.#settings
    const disks = this.#disks.map(({ name, geometry }) => ({ name, size: geometry.size }))
    const { incarnation } = this.#environment
    return new SecondaryMachine({
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
        throw new Fault('PROTOCOL', `the primary sent a ${frame.type} frame out of place`)
    }
  }

  #store(link: number, frame: Frame): void {
    if (!this.memory.canHold(frame.payload.length)) return this.#waitForMemory(link, frame)
    const disk = this.#machine.diskOf(link, frame)
    if (typeof disk === 'string') throw new Fault('PROTOCOL', disk)
    const layers = this.#disks[disk]?.layers
    if (frame.type === 'write') layers?.receiveWrite(frame.payload, frame.position)
    else layers?.receiveZero(frame.position, frame.extent, (frame.flags & PUNCH) !== 0)
  }

  /** Committed epochs give memory back once they are in the images; if there are none, waiting would be for ever. */
  #waitForMemory(link: number, frame: Frame): void {
    if (this.#disks.every(({ layers }) => layers.unflushedBytes === 0))
      return this.#step({ type: 'overflow' })
    this.#held = { link, frames: [{ ...frame, payload: Buffer.from(frame.payload) }] }
    this.#links.get(link)?.pause()
    this.memory.whenReleased(() => this.#retryHeld())
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
        this.#held = undefined
        for (const { layers } of this.#disks) layers.discardPending()
        return
      case 'commit':
        return this.#commit(effect.checkpoint)
      case 'activate':
        for (const { layers } of this.#disks) layers.activate()
        return
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
    for (const { layers } of this.#disks) layers.seal(checkpoint)
    this.#step({
      type: 'committed',
      checkpoint,
      commitUs: Math.round((this.#environment.nowMs() - startedMs) * 1000),
    })
  }

  #report(error: string): void {
    this.#giveUp?.(error)
    if (error === this.#error) return
    this.#error = error
    this.#environment.logger.error({ group: this.name, error }, 'replication error')
    this.#environment.onEvent({ event: 'REPLICATION_ERROR', data: { group: this.name, error } })
  }
}
