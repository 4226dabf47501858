/**
 * A replica in the role of secondary, around its machine: moves frames into the layers of the disks, keeps time, carries
 * out effects. When it is promoted it keeps the layers, which an active replica stands on.
 *
 * Invariant 20: received epochs stay within the limits of memory and journal (reception.ts). While committed epochs are being
 * flushed the link is not read (the primary slows down); an epoch that alone outgrows them is given up, loudly.
 */

import type { BlockDevice } from '../core/block-device.ts'
import { Fault } from '../core/fault.ts'
import { DiskLayers } from '../ramdisk/disk-layers.ts'
import { PageMemory } from '../ramdisk/page-memory.ts'
import { Answers } from './comparison/answers.ts'
import { Summer } from './comparison/checksums.ts'
import { Acknowledger } from './acknowledger.ts'
import { every, type GroupEnvironment, type Link, type LinkHandlers } from './environment.ts'
import { EpochKeeper } from './epoch-keeper.ts'
import type { CheckpointResult, SideStatus } from './group.ts'
import { Intake } from './intake.ts'
import { MEMORY_LOG, type EpochLog } from './journal/epoch-log.ts'
import { recoverJournal } from './journal/recover-group.ts'
import { frame, PARTIAL, UNASKED, type Frame } from './machine/frame.ts'
import { decodeDisk, type Hello } from './machine/handshake.ts'
import { FRESH, type ReplicaState } from './machine/replica-state.ts'
import type { SecondaryEffect, SecondaryInput } from './machine/secondary-io.ts'
import { SecondaryMachine } from './machine/secondary.ts'
import { OwnChanges } from './regions/own-changes.ts'
import { CAPACITY_PART, Reception } from './reception.ts'
import type { ChangedRange, RegionMap } from './regions/region-map.ts'
import { Requests } from './requests.ts'
import { SecondaryDisk } from './secondary-disk.ts'
import type { GroupSettings } from './settings.ts'
import type { Troubles } from './troubles.ts'
import { withheld } from './withheld-disk.ts'

export interface SecondaryHooks {
  /** The maps of changed regions, by disk; there from recover() on. */
  readonly regions: readonly RegionMap[]
  /** The replica is about to become active: resolves when that can be remembered. */
  promoting(): Promise<void> | undefined
  /** It is remembered: the replica is active from this instant on. */
  promoted(state: ReplicaState): void
  /** The image of a disk fails, and the server is being shut down. */
  givenUp(disk: string): void
}

export class SecondarySide {
  readonly name: string
  readonly memory: PageMemory
  readonly #settings: GroupSettings
  readonly #environment: GroupEnvironment
  readonly #disks: SecondaryDisk[] = []
  readonly #checkpoints = new Requests<CheckpointResult>()
  readonly #promotions = new Requests<void>()
  readonly #links = new Map<number, Link>()
  readonly #answers = new Map<number, Answers>()
  readonly #summer: Summer
  #machine: SecondaryMachine
  #log: EpochKeeper
  readonly reception: Reception
  readonly #intake: Intake
  readonly #acknowledger: Acknowledger
  readonly #troubles: Troubles
  readonly #hooks: SecondaryHooks
  #replica: string
  readonly #changes: OwnChanges
  #nextLink = 1
  #following = false
  #stopTicking: (() => void) | undefined
  /** Ends the draining of a disk that cannot be drained. */
  readonly #giveUp = new Map<SecondaryDisk, (error: string) => void>()
  #stopping = false

  constructor(
    settings: GroupSettings,
    environment: GroupEnvironment,
    troubles: Troubles,
    hooks: SecondaryHooks,
  ) {
    this.name = settings.group
    this.#hooks = hooks
    this.#settings = settings
    this.#environment = environment
    this.memory = new PageMemory(settings.memory)
    this.#summer = new Summer(environment.timers)
    this.#troubles = troubles
    this.#changes = new OwnChanges(hooks.regions, troubles)
    this.#log = this.#keeper(MEMORY_LOG)
    this.reception = new Reception({
      ...{ memory: this.memory, spillBytes: settings.spillBytes },
      ...{ log: () => this.#log, disks: this.#disks },
    })
    this.#intake = new Intake({
      hasRoom: (bytes) => this.reception.hasRoom(bytes),
      awaitRoom: (wake) => this.reception.awaitRoom(wake),
      handle: (link, frame) => this.#handle(link, frame),
      overflow: () => this.#step({ type: 'overflow', lack: this.reception.lack }),
      linkOf: (number) => this.#links.get(number),
    })
    this.#acknowledger = new Acknowledger(
      {
        sync: () => this.#log.sync(),
        send: (link, outgoing) => this.#links.get(link)?.send(outgoing),
      },
      settings.leastWindow,
    )
    this.#replica = environment.newId()
    this.#machine = this.#newMachine(FRESH)
  }

  get machine(): SecondaryMachine {
    return this.#machine
  }

  /** By which peers know what is remembered here. */
  get replica(): string {
    return this.#replica
  }

  get log(): EpochKeeper {
    return this.#log
  }

  get disks(): readonly SecondaryDisk[] {
    return this.#disks
  }

  get stopping(): boolean {
    return this.#stopping
  }

  /** The server is being shut down: requests that wait are refused, and so are commands. */
  stop(): void {
    this.#stopping = true
    this.#log.stop()
    for (const disk of this.#disks) {
      disk.wake()
      if (this.#troubles.concerns(`disk ${disk.name}`)) this.#hooks.givenUp(disk.name)
    }
  }

  get #useObjection(): string | undefined {
    if (this.#settings.mode === 'colo') {
      const { consistent, generation } = this.#machine.state
      if (consistent && generation !== null) return undefined
      return `group "${this.name}" is being copied from its primary: until that is whole it serves nothing`
    }
    return `this is the secondary of remus group "${this.name}", which serves nothing until it is promoted`
  }

  /** Why the guest may not use a disk now, or undefined when it may. */
  objectionTo(name: string): Fault | undefined {
    if (this.#machine.state.apart[name] !== undefined) return withheld(name)
    const objection = this.#useObjection
    return objection === undefined
      ? undefined
      : new Fault('NOT_PERMITTED', objection, { where: name })
  }

  mixturesOf(name: string): number {
    return this.#machine.mixturesOf(name)
  }

  /** Makes a disk that is one of the group's with join(). */
  attach(name: string, image: BlockDevice): SecondaryDisk {
    const layers = new DiskLayers({
      image,
      memory: this.memory,
      timers: this.#environment.timers,
      urgent: () => this.log.urgent,
      onFlushed: (checkpoint) => this.#flushed(disk, checkpoint),
      onError: (fault) => {
        const error = `disk "${name}" cannot take a committed checkpoint yet, which is kept, and tried again: ${fault.message}`
        this.#giveUp.get(disk)?.(error)
        if (this.#stopping) this.#hooks.givenUp(name)
        this.#troubles.report(`disk ${name}`, error)
      },
    })
    const disk = new SecondaryDisk(name, image, layers, this)
    return disk
  }

  /** The disk is one of the group's from now on. */
  join(disk: SecondaryDisk): void {
    const { name, geometry } = disk
    this.#disks.push(disk)
    if (this.#following) this.#step({ type: 'disk-added', disk: { name, size: geometry.size } })
  }

  /** It is one of the group's no longer. */
  part(disk: SecondaryDisk): void {
    const index = this.#disks.indexOf(disk)
    this.#disks.splice(index, 1)
    this.#log.drop(index)
    this.#changes.know(undefined)
    if (this.#following) this.#step({ type: 'disk-removed', name: disk.name })
  }

  grown({ name, geometry }: SecondaryDisk): void {
    if (this.#following) this.#step({ type: 'disk-grown', disk: { name, size: geometry.size } })
  }

  /** Whether it is being decided that this side takes over. */
  get isTakingOver(): boolean {
    return this.#following && this.#machine.isTakingOver
  }

  /**
   * Brings back what the journal holds: committed epochs lie over the images as if they had just been committed.
   * @returns what is remembered
   * @throws Fault when there is a journal that cannot be used
   */
  async recover(): Promise<ReplicaState> {
    if (this.#settings.durability === 'memory') {
      if (await this.#environment.hasSegments(this.name)) throw this.#forgetsJournal()
      return FRESH
    }
    const { journal, state } = await recoverJournal({
      group: this.name,
      disks: this.#disks,
      memory: this.memory,
      environment: this.#environment,
      limit: this.#settings.journal,
      onFailure: (fault) => this.#log.failed(fault),
    })
    this.#log = this.#keeper(journal)
    this.#replica = journal.replica
    for (const [index, { flushed }] of this.#disks.entries()) this.#log.flushed(index, flushed)
    return state
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

  /** The role of a secondary begins. @param changed what it changed itself, as far as that is known better than by the maps on disk */
  follow(state: ReplicaState, changed?: readonly (readonly ChangedRange[])[]): void {
    this.#machine = this.#newMachine(state)
    this.#changes.know(changed)
    this.#following = true
    for (const disk of this.#disks) disk.yieldTo(undefined)
    this.#stopTicking = every(this.#environment.timers, this.#settings.heartbeatMs / 2, () =>
      this.#tick(),
    )
  }

  /** The role ends without a promote: the replica was a primary before. */
  activate(): void {
    this.#log.activate()
  }

  status(): SideStatus {
    const machine = this.#machine
    return {
      role: machine.role,
      protection: machine.protection,
      reason: machine.reason,
      // Over the blktap2 wire no primary can show that it is the one that was here before.
      heals: this.#settings.wire === 'colotap' || machine.state.generation === null,
      refused: false,
      checkpoint: machine.committed,
      term: machine.term,
      durable: this.#log.durable,
      peer: machine.peer,
      disks: this.#disks.map(({ name, layers }) => ({
        name,
        size: layers.size,
        dirtyBytes: layers.pendingBytes,
        standing: machine.state.apart[name] ?? 'whole',
      })),
    }
  }

  checkpoint(timeoutMs: number): Promise<CheckpointResult> {
    return this.#checkpoints.open((request) =>
      this.#step({
        type: 'await-checkpoint',
        request,
        timeoutMs,
        nowMs: this.#environment.nowMs(),
      }),
    )
  }

  /** Resolves when this side is active. @throws Fault NOT_PERMITTED when it must not be, or cannot remember it */
  promote(force: boolean): Promise<void> {
    if (this.#stopping)
      return Promise.reject(
        new Fault('SHUTDOWN', 'the server is being shut down', { where: `group ${this.name}` }),
      )
    const generation = this.#environment.newId()
    return this.#promotions.open((request) =>
      this.#step({ type: 'promote', request, force, generation }),
    )
  }

  discard(whose: 'local' | 'remote'): void {
    this.#step({ type: 'discard', whose })
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
        this.#answers.delete(number)
        this.#step({ type: 'link-down', link: number, reason })
      },
    }
  }

  /** The role of a secondary ends: nobody is followed any more. */
  end(reason: string): void {
    this.#following = false
    this.#stopTicking?.()
    this.#stopTicking = undefined
    for (const link of this.#links.values()) link.close(reason)
  }

  /** Resolves when everything that was committed is in the images. @throws Fault when the server is shut down before */
  async drained(): Promise<void> {
    for (const [index, { layers }] of this.#disks.entries()) {
      await layers.idle()
      await this.#log.settled(index)
    }
  }

  /** Committed checkpoints reach the images first, as far as the images take them; what was not committed is dropped. */
  async close(): Promise<void> {
    this.end('the secondary is shutting down')
    this.#step({ type: 'ended' })
    await this.#log.quiet()
    const lost = await Promise.all(this.#disks.map((disk) => this.drain(disk)))
    const drained = [...this.#disks.keys()].filter((disk) => !this.#disks[disk]?.layers.isBusy)
    for (const { layers } of this.#disks) await layers.close()
    await this.#log.close(drained)
    const first = lost.find((fault) => fault !== undefined)
    if (first !== undefined) throw first
  }

  /**
   * A disk that fails while it is being drained would hold up the shutdown for ever: say what is lost instead.
   * @returns the loss; none where the journal has what the image lacks
   */
  async drain(disk: SecondaryDisk): Promise<Fault | undefined> {
    const { name, layers } = disk
    const failed = new Promise<string>((resolve) => {
      this.#giveUp.set(disk, resolve)
    })
    const error = await Promise.race([layers.idle().then(() => undefined), failed])
    this.#giveUp.delete(disk)
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
      step: (input) => {
        if (this.#following) this.#step(input)
      },
    })
  }

  #newMachine(remembered: ReplicaState): SecondaryMachine {
    const { group, mode, heartbeatMs, timeoutMs, memory } = this.#settings
    const disks = this.#disks.map(({ name, geometry }) => ({ name, size: geometry.size }))
    return new SecondaryMachine({
      durable: this.#log.durable,
      fences: this.#settings.fence !== null,
      remembered,
      group,
      mode,
      heartbeatMs,
      timeoutMs,
      disks,
      replica: this.#replica,
      capacity: Math.floor(memory * CAPACITY_PART),
    })
  }

  #tick(): void {
    const nowMs = this.#environment.nowMs()
    // A link that is not read for want of memory cannot show signs of life.
    const { heldLink } = this.#intake
    if (heldLink !== undefined) this.#step({ type: 'heartbeat', link: heldLink, nowMs })
    this.#step({ type: 'tick', nowMs })
    this.#step({
      type: 'held',
      nowMs,
      bytes: this.memory.bytesInUse,
      spilledBytes: this.reception.spilledBytes,
      held: heldLink !== undefined,
      progress: this.#disks.reduce((sum, { layers }) => sum + layers.progress, this.#log.progress),
    })
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
          partial: (frame.flags & PARTIAL) !== 0,
          asked: (frame.flags & UNASKED) === 0,
          nowMs: this.#environment.nowMs(),
        })
      case 'compare':
        return this.#compare(link, frame)
      case 'synced':
        return this.#step({ type: 'synced', link, nowMs: this.#environment.nowMs() })
      case 'handover': {
        const generation = this.#environment.newId()
        return this.#step({ type: 'handover', link, checkpoint: frame.position, generation })
      }
      case 'acknowledge':
        return this.#acknowledger.ask(link, frame.position)
      case 'offer': {
        const disk = { ...decodeDisk(frame.payload), number: frame.disk }
        return this.#step({ type: 'offer', link, disk, nowMs: this.#environment.nowMs() })
      }
      case 'withdraw':
      case 'complete': {
        const { type, disk: number } = frame
        return this.#step({ type, link, number, nowMs: this.#environment.nowMs() })
      }
      case 'heartbeat':
        return this.#step({ type: 'heartbeat', link, nowMs: this.#environment.nowMs() })
      case 'refuse':
        return this.#links.get(link)?.close('the primary refused')
      case 'hello':
      case 'done':
      case 'received':
      case 'stored':
      case 'pressure':
      case 'dirty':
      case 'accept':
      case 'resized':
      case 'ready':
      case 'sums':
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
    // It was removed here while this was on its way.
    if (disk === undefined) return this.#acknowledger.took(link, frame)
    const layers = this.#disks[disk]?.layers
    if (layers !== undefined) this.reception.store(layers, { ...frame, disk })
    this.#acknowledger.took(link, frame)
  }

  /** @throws Fault to end the link */
  #compare(number: number, question: Frame): void {
    const disk = this.#machine.diskAsked(number, question)
    if (typeof disk === 'string') throw new Fault('PROTOCOL', disk)
    // It was removed here meanwhile: nothing can be said of it.
    if (disk === undefined) return this.#links.get(number)?.send({ ...question, type: 'sums' })
    const [link, member] = [this.#links.get(number), this.#disks[disk]]
    if (link === undefined || member === undefined) return
    let answers = this.#answers.get(number)
    if (answers === undefined) {
      answers = new Answers(link, this.#summer)
      this.#answers.set(number, answers)
    }
    answers.answer(question, member.layers, ({ message }) =>
      this.#troubles.report(`disk ${member.name}`, `disk "${member.name}": ${message}`),
    )
  }

  async #fence(peer: string): Promise<void> {
    const { fence, group } = this.#settings
    if (fence === null) return
    const { committed: checkpoint, term } = this.#machine
    const request = { group, action: 'promote', peer, checkpoint, term } as const
    const { fenced } = await this.#environment.fence(fence, request)
    if (!this.#following || this.#stopping) return
    this.#step({ type: 'fenced', fenced, generation: this.#environment.newId() })
  }

  /** What this side changed by itself, as a primary, the new primary has to send as well. */
  #tellChanges(number: number): void {
    const link = this.#links.get(number)
    if (link === undefined) return
    if (this.#machine.state.wrote)
      for (const index of this.#disks.keys())
        for (const { at, length } of this.#changes.of(index)) {
          const disk = this.#machine.diskFor(number, index)
          if (disk === -1) break
          link.send(frame('dirty', { disk, position: at, extent: length }))
        }
    link.send(frame('ready'))
  }

  #flushed(disk: SecondaryDisk, checkpoint: number): void {
    const { logger } = this.#environment
    logger.debug({ group: this.name, disk: disk.name, checkpoint }, 'checkpoint is in the image')
    disk.flushed = checkpoint
    this.#troubles.over(`disk ${disk.name}`)
    const index = this.#disks.indexOf(disk)
    if (index !== -1) this.#log.flushed(index, checkpoint)
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
      case 'fence':
        void this.#fence(effect.peer)
        return
      case 'tell-changes':
        return this.#tellChanges(effect.link)
      case 'forget-changes':
        return this.#changes.forget(effect.ends)
      case 'commit':
        return this.#log.commit(effect.checkpoint, effect.state)
      case 'remember':
        return this.#log.remember(effect.state, this.#hooks.promoting())
      case 'restart-log':
        void this.#log.restart()
        return
      case 'activate':
        return this.#hooks.promoted(this.#machine.state)
      case 'promoted':
        return this.#promotions.resolve(effect.request, undefined)
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
