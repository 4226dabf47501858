/**
 * A replica in the role of primary, around its machine: connects, moves frames, keeps time, carries out effects. Decides
 * nothing.
 *
 * Invariant:
 *  - 13, 14 No write begins, and none is acknowledged, but through the gate (write-gate.ts).
 */

import type { BlockDevice } from '../core/block-device.ts'
import { asFault, Fault, type FaultCode } from '../core/fault.ts'
import type { MaybePromise } from '../core/maybe-promise.ts'
import { Verifier } from './comparison/verifier.ts'
import { Connector } from './connector.ts'
import {
  every,
  type Dial,
  type GroupEnvironment,
  type Link,
  type LinkHandlers,
} from './environment.ts'
import type {
  Ack,
  CheckpointResult,
  DiskStatus,
  GroupChanges,
  ResyncProgress,
  VerifyReport,
} from './group.ts'
import { Forwarding } from './forwarding.ts'
import { LearnedChanges } from './learned-changes.ts'
import type { Frame } from './machine/frame.ts'
import { frame } from './machine/frame.ts'
import { decodeHello, decodeRefusal, encodeRefusal, type Hello } from './machine/handshake.ts'
import type { PrimaryEffect, PrimaryInput } from './machine/primary-io.ts'
import { PrimaryMachine } from './machine/primary.ts'
import type { ReplicaState } from './machine/replica-state.ts'
import { PrimaryDisk } from './primary-disk.ts'
import { dirtyRanges } from './regions/dirty-ranges.ts'
import type { ChangedRange, RegionMap } from './regions/region-map.ts'
import { Retention } from './regions/retention.ts'
import { Requests } from './requests.ts'
import { Resync } from './resync.ts'
import type { GroupSettings } from './settings.ts'
import type { Troubles } from './troubles.ts'
import { WriteGate } from './write-gate.ts'

/** How long news of the other side's disks may be on their way, where a command depends on them. */
const NEWS_MS = 1000

export interface TrackedDisk {
  readonly name: string
  readonly below: BlockDevice
  readonly regions: RegionMap
  /** What may differ from the last checkpoint already. */
  readonly changed: readonly ChangedRange[]
}

export interface PrimaryOptions {
  readonly settings: GroupSettings
  readonly environment: GroupEnvironment
  readonly replica: string
  readonly remembered: ReplicaState
  /** Whether another replica may hold the remembered line. */
  readonly shared: boolean
  readonly disks: readonly TrackedDisk[]
  /** Undefined where no peer is configured. */
  readonly dial: Dial | undefined
  readonly troubles: Troubles
  /** Remembers the state durably. @throws Fault */
  readonly persist: (state: ReplicaState) => MaybePromise<void>
  /** This side is to follow the other one. */
  readonly stepDown: (reason: string) => void
}

export class PrimarySide {
  readonly machine: PrimaryMachine
  readonly #disks: PrimaryDisk[]
  /** By index, also those that were removed. */
  readonly #tracked: (TrackedDisk & { gone?: true })[]
  readonly #options: PrimaryOptions
  readonly #checkpoints = new Requests<CheckpointResult>()
  readonly #connector: Connector | undefined
  readonly forwarding: Forwarding
  #resync: Resync | undefined
  readonly #verifier: Verifier
  readonly retention: Retention
  readonly #learned: LearnedChanges
  #stopTicking: (() => void)[] = []
  readonly #gate: WriteGate
  #rate: number
  #complaint = ''
  /** Who waits for what the other side says of its disks. */
  #awaitingNews: (() => void)[] = []
  /** Copies that wait for the next epoch. */
  #awaitingRoom: (() => void)[] = []

  constructor(options: PrimaryOptions) {
    const { settings, environment, disks, dial, replica, remembered, shared } = options
    this.#options = options
    this.#rate = settings.resyncRate
    this.machine = new PrimaryMachine({
      ...settings,
      ...{ replica, remembered, shared },
      fences: settings.fence !== null,
      disks: disks.map(({ name, below }) => ({ name, size: below.geometry.size })),
    })
    this.#gate = new WriteGate(this.machine, {
      fork: () => this.#step({ type: 'fork', generation: environment.newId() }),
      persist: options.persist,
    })
    this.forwarding = new Forwarding(this.machine, () => environment.nowMs(), settings.leastWindow)
    this.#tracked = disks.map((disk) => ({ ...disk }))
    this.#learned = new LearnedChanges(this.machine, this.#tracked)
    this.#disks = disks.map(({ name, below }, index) => new PrimaryDisk(name, below, this, index))
    this.#verifier = new Verifier({
      ...{ group: settings.group, compareBytes: settings.compareBytes, machine: this.machine },
      ...{ environment, troubles: options.troubles },
      disks: () => this.disks,
      regions: () => this.#tracked.map(({ regions }) => regions),
      step: (input) => this.#step(input),
    })
    this.retention = new Retention({ ...options, machine: this.machine, disks: this.#tracked })
    for (const [index, { changed }] of disks.entries())
      for (const { at, length } of changed) this.machine.recall(index, at, length)
    if (dial === undefined) return
    this.#connector = new Connector(dial, {
      timers: environment.timers,
      wanted: () => this.machine.replicating,
      connected: (open) => this.#adopt(open),
      failed: (reason) => this.#complain(`cannot reach the secondary: ${reason}`),
    })
  }

  /** By index; one that was removed is there, and of no use. */
  get disks(): readonly PrimaryDisk[] {
    return this.#disks
  }

  isGone(index: number): boolean {
    return this.#tracked[index]?.gone === true
  }

  /** The group has one more disk. */
  addDisk(disk: TrackedDisk): PrimaryDisk {
    const { name, below } = disk
    const added = new PrimaryDisk(name, below, this, this.#disks.length)
    this.#disks.push(added)
    this.#tracked.push({ ...disk })
    this.#step({ type: 'disk-added', disk: { name, size: below.geometry.size } })
    return added
  }

  /** The group has a disk no longer, from now on. Resolves when nothing here uses it. */
  async removeDisk(name: string): Promise<void> {
    const index = this.#indexOf(name)
    const tracked = this.#tracked[index]
    if (tracked === undefined) return
    tracked.gone = true
    this.#step({ type: 'disk-removed', disk: index })
    await this.retention.quiet()
    await this.#disks[index]?.quiet()
  }

  /**
   * Why a disk cannot have this size, or undefined when it can. What was just done on the other side may be on its way here, so
   * it is waited for a little.
   */
  async objectionToSize(name: string, size: number): Promise<string | undefined> {
    const objection = (): string | undefined => {
      const there = this.machine.sizeThere(this.#indexOf(name))
      if (there === undefined || there >= size) return undefined
      return `the secondary's disk has ${there} bytes: grow that one first`
    }
    const patience = { over: false }
    const cancel = this.#options.environment.timers.after(NEWS_MS, () => {
      patience.over = true
      this.#tellOfNews()
    })
    while (!patience.over && objection() !== undefined)
      await new Promise<void>((resolve) => this.#awaitingNews.push(resolve))
    cancel()
    return objection()
  }

  #tellOfNews(): void {
    for (const go of this.#awaitingNews.splice(0)) go()
  }

  /** The image of a disk has grown, and holds zeroes there. */
  async growDisk(name: string, before: number, size: number): Promise<void> {
    const index = this.#indexOf(name)
    this.#step({ type: 'disk-grown', disk: index, size })
    if (!this.machine.carries(index)) {
      this.machine.recall(index, before, size - before)
      return
    }
    try {
      await this.#disks[index]?.extend(before, size - before)
    } catch (error) {
      if (!(error instanceof Fault)) throw error
      // This side is leaving its role: whoever leads next has to send it.
      this.machine.foundDifferent(index, before, size - before)
    }
  }

  #indexOf(name: string): number {
    return this.#tracked.findIndex((disk) => disk.name === name && disk.gone !== true)
  }

  start(): void {
    const { environment, settings } = this.#options
    const { timers } = environment
    this.#stopTicking = [
      every(timers, settings.heartbeatMs / 2, () =>
        this.#step({ type: 'tick', nowMs: environment.nowMs() }),
      ),
      this.retention.begin(timers),
    ]
    this.#connector?.connect()
  }

  /** What this side compares with the secondary. */
  get verification(): VerifyReport | null {
    return this.#verifier.report
  }

  /** @throws Fault where there is no secondary to compare with */
  verify(wish: 'compare' | 'repair' | 'cancel'): void {
    if (wish === 'cancel') return this.#verifier.cancel('an operator has canceled it')
    this.assertStays()
    this.#verifier.start(wish === 'repair', this.#rate)
  }

  /** Bytes of data that the resync of this link has sent. */
  get movedBytes(): number {
    return this.#resync?.movedBytes ?? 0
  }

  get progress(): ResyncProgress | null {
    return this.forwarding.link === undefined ? null : (this.#resync?.progress ?? null)
  }

  diskStatus(): DiskStatus[] {
    const apart = this.machine.lacking
    return this.#tracked.flatMap(({ name, below, gone }, index) => {
      if (gone === true) return []
      const dirtyBytes = this.machine.dirtyBytes(index)
      return [{ name, size: below.geometry.size, dirtyBytes, standing: apart[name] ?? 'whole' }]
    })
  }

  checkpoint(timeoutMs: number): Promise<CheckpointResult> {
    const { environment } = this.#options
    return this.#checkpoints.open((request) =>
      this.#step({ type: 'checkpoint', request, timeoutMs, nowMs: environment.nowMs() }),
    )
  }

  setReplicating(on: boolean): void {
    this.#step({ type: 'set-replicating', on })
    // Also when it was switched off: an attempt that is under way must not succeed any more.
    if (this.forwarding.link === undefined) this.#connector?.connect()
  }

  discard(whose: 'local' | 'remote'): void {
    this.#step({ type: 'discard', whose })
    if (this.forwarding.link === undefined) this.#connector?.connect()
  }

  /** @throws Fault where the secondary that is connected cannot do it */
  configure({ onLinkLoss, intervalMs, resyncRate, ack }: GroupChanges): void {
    const objection = ack === undefined ? undefined : this.#ackObjection(ack)
    if (objection !== undefined) throw this.#fault('NOT_PERMITTED', objection)
    this.#step({ type: 'configure', onLinkLoss, intervalMs, ack })
    this.#rate = resyncRate ?? this.#rate
    if (resyncRate === undefined) return
    this.#resync?.setRate(resyncRate)
    this.#verifier.setRate(resyncRate)
  }

  #ackObjection(ack: Ack): string | undefined {
    if (this.#options.settings.wire === 'blktap2' && ack !== 'sent')
      return 'the blktap2 wire has no acknowledgements: only ack=sent is possible'
    return this.machine.ackObjection(ack)
  }

  /** Whether this side is leaving its role: nothing may come between the last checkpoint and the handover. */
  get isLeaving(): boolean {
    return this.#gate.held || this.#gate.ended !== undefined
  }

  /** @throws Fault while this side is leaving its role */
  assertStays(): void {
    if (!this.isLeaving) return
    throw new Fault('NOT_PERMITTED', 'this side is leaving its role', {
      where: `group ${this.#options.settings.group}`,
      remedy: 'run it on the primary, once there is one',
    })
  }

  /** Sends the disks as a whole again, or what of them differs. @throws Fault when that cannot be remembered */
  async copyAgain(comparesFirst: boolean): Promise<void> {
    this.assertStays()
    for (const { regions, below, gone } of this.#tracked)
      if (gone !== true) await regions.mark(0, below.geometry.size)
    // The roles may be being exchanged by now.
    this.assertStays()
    this.#step({ type: 'copy-again', comparesFirst })
  }

  /** Another primary has connected to this side. */
  take(link: Link, hello: Hello): LinkHandlers {
    for (const effect of this.machine.step({ type: 'called', hello })) {
      if (effect.type !== 'answer') {
        this.#perform(effect)
        continue
      }
      link.send(frame('refuse', { payload: encodeRefusal(effect.refusal) }))
      link.close(effect.refusal.reason)
    }
    return { frame: () => undefined, closed: () => undefined }
  }

  diskFailed(reason: string): void {
    this.#options.troubles.report('disk', reason)
    this.#step({ type: 'disk-failed', reason })
  }

  ready(): MaybePromise<void> {
    return this.#gate.ready()
  }

  thawed(): MaybePromise<void> {
    return this.#gate.thawed()
  }

  /** Lets writes wait, and resolves when none is under way. */
  async hold(): Promise<void> {
    this.#gate.hold()
    // A repair at its end would begin in the middle of the exchange.
    this.#verifier.cancel('this side is leaving its role')
    for (const disk of this.disks) await disk.quiet()
    await this.forwarding.quiet()
  }

  unhold(): void {
    this.#gate.unhold()
    this.#admitCopies()
  }

  /** The secondary is to take over at this checkpoint; this side has given up its role. */
  handOver(checkpoint: number): void {
    this.forwarding.link?.send(frame('handover', { position: checkpoint }))
  }

  /** No guest may use this side any more: what waits is refused, and what was begun comes to an end. */
  async retire(reason: Fault): Promise<void> {
    this.#gate.end(reason)
    this.forwarding.finish()
    for (const disk of this.disks) await disk.quiet()
  }

  /** The role ends, and with it the link. */
  async end(reason: Fault): Promise<void> {
    for (const stop of this.#stopTicking) stop()
    this.#connector?.close()
    this.#resync?.stop()
    this.#verifier.end(reason.message)
    this.#gate.refuse(reason)
    // A write may wait for a peer that does not read any more.
    this.forwarding.link?.close(reason.message)
    this.#step({ type: 'link-down', reason: reason.message })
    await this.retire(reason)
  }

  /** What differs from the last checkpoint, by disk of the group. */
  changes(): ChangedRange[][] {
    const live = [...this.#tracked.keys()].filter((index) => !this.isGone(index))
    return live.map((index) => dirtyRanges(this.machine, index))
  }

  #adopt(open: (handlers: LinkHandlers) => Link): void {
    const link: Link = open({
      frame: (frame) => this.#receive(frame),
      closed: (reason) => {
        this.#connector?.connectLater()
        if (this.forwarding.link !== link) return
        this.forwarding.end()
        this.#resync?.stop()
        this.#verifier.linkDown(reason)
        this.#step({ type: 'link-down', reason })
        this.#complain(reason)
      },
    })
    this.forwarding.begin(link)
    this.#learned.forget()
    this.#resync = undefined
    this.#verifier.linkUp(link)
    const { environment } = this.#options
    const greet = (): void => {
      if (this.forwarding.link === link && !link.closed)
        this.#step({ type: 'link-up', nowMs: environment.nowMs(), peer: link.peer })
    }
    const remembering = this.#gate.remembering
    if (remembering === undefined) greet()
    else void remembering.then(greet, () => link.close('the new line cannot be remembered'))
  }

  #receive(frame: Frame): void {
    const nowMs = this.#options.environment.nowMs()
    switch (frame.type) {
      case 'hello':
        return this.#step({ type: 'hello', nowMs, hello: decodeHello(frame.payload) })
      case 'refuse':
        return this.#step({ type: 'refused', nowMs, refusal: decodeRefusal(frame.payload) })
      case 'dirty':
        return this.#step(this.#learned.hear(frame, nowMs))
      case 'ready':
        return this.#step({ type: 'ready', nowMs })
      case 'accept':
      case 'withdraw':
      case 'resized': {
        const { type: news, disk: number, extent: size } = frame
        this.#step({ type: 'disk-news', nowMs, news, number, size })
        return this.#tellOfNews()
      }
      case 'done':
        return this.#step({
          type: 'done',
          nowMs,
          checkpoint: frame.position,
          commitUs: frame.extent,
        })
      case 'heartbeat':
        return this.#step({ type: 'heartbeat', nowMs })
      case 'sums':
        this.#step({ type: 'heartbeat', nowMs })
        return this.#verifier.take(frame)
      case 'received':
      case 'stored':
        return this.#acknowledge(frame.type, frame.position)
      case 'pressure':
        return this.#step({ type: 'pressure', nowMs, bytes: frame.position, limit: frame.extent })
      case 'write':
      case 'zero':
      case 'compare':
      case 'checkpoint':
      case 'offer':
      case 'complete':
      case 'synced':
      case 'handover':
      case 'acknowledge':
      case 'discard':
      case 'state':
      case 'segment':
        throw new Fault(
          'PROTOCOL',
          `the secondary sent a ${frame.type} frame, which it never sends`,
        )
    }
  }

  #acknowledge(kind: 'received' | 'stored', position: number): void {
    const objection = this.forwarding.acknowledge(kind, position)
    if (objection !== undefined) throw new Fault('PROTOCOL', objection)
    this.#step({ type: 'acknowledged', nowMs: this.#options.environment.nowMs() })
  }

  #step(input: PrimaryInput): void {
    for (const effect of this.machine.step(input)) this.#perform(effect)
    this.#gate.open()
    this.forwarding.settle()
    this.#admitCopies()
  }

  #perform(effect: PrimaryEffect): void {
    switch (effect.type) {
      case 'send':
        return this.forwarding.link?.send(effect.frame)
      case 'close-link':
        return this.#drop(effect.reason)
      case 'checkpoint-done':
        return this.#checkpoints.resolve(effect.request, effect.result)
      case 'checkpoint-failed':
        return this.#checkpoints.reject(effect.request, this.#fault(effect.code, effect.reason))
      case 'resync':
        return this.#beginResync(effect)
      case 'remember':
        return this.#remember()
      case 'event':
        return this.#announce(effect)
      case 'step-down':
        return this.#options.stepDown(effect.reason)
      case 'fence':
        void this.#fence(effect.peer)
        return
      case 'answer':
        return
    }
  }

  async #fence(peer: string): Promise<void> {
    const { settings, environment } = this.#options
    if (settings.fence === null) return
    const { committed: checkpoint, term } = this.machine
    const request = { group: settings.group, action: 'continue', peer, checkpoint, term } as const
    const { fenced } = await environment.fence(settings.fence, request)
    if (this.#gate.ended === undefined) this.#step({ type: 'fenced', fenced })
  }

  #beginResync(effect: Extract<PrimaryEffect, { type: 'resync' }>): void {
    const { environment } = this.#options
    const remembered = this.#learned.remembered()
    this.#resync?.stop()
    const resync = new Resync({
      ...effect,
      disks: this.disks,
      machine: this.machine,
      environment,
      rate: this.#rate,
      comparison: effect.compares ? this.#verifier.comparison : undefined,
      compareBytes: this.#options.settings.compareBytes,
      wanted: effect.disks,
      room: () => this.#copyRoom(),
      prepare: async () => {
        await remembered
        if (!effect.copies) return
        for (const index of effect.disks) {
          const disk = this.#tracked[index]
          await disk?.regions.mark(0, disk.below.geometry.size)
        }
      },
      step: (input) => this.#step(input),
    })
    this.#resync = resync
    void resync.run().catch((error: unknown) => {
      if (this.#resync !== resync) return
      const { message } = asFault(error, 'IO', 'resync stopped')
      this.diskFailed(`resync stopped: ${message}`)
    })
  }

  /** Resolves when the present epoch may hold more of what is copied beside it; the one that is handed over holds nothing. */
  #copyRoom(): MaybePromise<void> {
    if (this.machine.copyHasRoom && !this.isLeaving) return undefined
    return new Promise((resolve) => this.#awaitingRoom.push(resolve))
  }

  #admitCopies(): void {
    if (this.#awaitingRoom.length === 0 || !this.machine.copyHasRoom || this.isLeaving) return
    for (const go of this.#awaitingRoom.splice(0)) go()
  }

  #remember(): void {
    const { persist, troubles } = this.#options
    void Promise.resolve(persist(this.machine.state(false))).catch((error: unknown) => {
      // After a crash the disk is copied once more then.
      troubles.report('journal', asFault(error, 'IO', 'cannot remember a disk').message)
    })
  }

  #announce({ event }: Extract<PrimaryEffect, { type: 'event' }>): void {
    const { environment, troubles } = this.#options
    if (event.event === 'REPLICATION_PROTECTION' && event.data.protection === 'protected') {
      this.#connector?.succeeded()
      this.#complaint = ''
    }
    if (event.event === 'REPLICATION_CHECKPOINT') {
      // What was written wrongly was sent again by now, from the image as it is.
      troubles.over('disk')
    }
    if (event.event === 'REPLICATION_ERROR') return troubles.report('role', event.data.error)
    environment.onEvent(event)
  }

  /** The machine has ended the link: the connection follows. */
  #drop(reason: string): void {
    const { link } = this.forwarding
    this.forwarding.end()
    this.#resync?.stop()
    this.#verifier.linkDown(reason)
    link?.close(reason)
    this.#complain(reason)
  }

  /** Says why there is no link, once for each reason, not at each attempt. */
  #complain(reason: string): void {
    if (reason === this.#complaint || this.#gate.ended !== undefined) return
    this.#complaint = reason
    const { settings, environment } = this.#options
    environment.logger.warn(
      { group: settings.group, peer: settings.peer, reason },
      'not connected to the secondary',
    )
  }

  #fault(code: FaultCode, reason: string): Fault {
    return new Fault(code, reason, { where: `group ${this.#options.settings.group}` })
  }
}
