/**
 * The primary's side of a group, as a pure machine: inputs in, effects out; no socket, no clock, no payload bytes.
 *
 * Invariants kept here (numbers of the replication model in docs/architecture.md):
 *  - 5  Epoch cut: a write is forwarded, or recorded as dirty, before it is acknowledged; a marker is sent in the same
 *       ordered stream, so an acknowledged write is in front of every later marker.
 *  - 15 Dirty cover: a block is marked before it is written, and again in the epoch that carries it.
 *  - 16 Clear-safe: `committed` only moves to a number that the secondary itself reported.
 *  - 22 A checkpoint request succeeds only when its own number was reported as done.
 *  - No marker is sent while the secondary's stream lacks anything that is dirty (state `resyncing`).
 */

import { assert } from '../../core/assert.ts'
import type { FaultCode } from '../../core/fault.ts'
import type { CheckpointResult, GroupEvent, Protection } from '../group.ts'
import { DirtyMap } from './dirty-map.ts'
import { frame, type Frame } from './frame.ts'
import { encodeHello, objection, PROTOCOL, type Hello, type Refusal } from './handshake.ts'
import { Liveness } from './liveness.ts'
import { Markers, type CheckpointRequest } from './markers.ts'
import { ProtectionReport } from './protection-report.ts'
import type { PrimaryEffect, PrimaryInput, PrimarySettings } from './primary-io.ts'

type Link =
  | { readonly kind: 'down' }
  | { readonly kind: 'greeting' }
  | { readonly kind: 'resyncing'; readonly session: number }
  | { readonly kind: 'streaming' }

export class PrimaryMachine {
  readonly #settings: PrimarySettings
  readonly #liveness: Liveness
  readonly #dirty: readonly DirtyMap[]
  #link: Link = { kind: 'down' }
  #peer: string | null = null
  #partner: string | null = null
  #durable = false
  #committed = 0
  #announced = 0
  #term = 1
  #replicating = true
  #deposed = false
  #heals = true
  /** Why the group is not protected; undefined while it was never anything else than about to connect. */
  #reason: string | undefined
  readonly #markers = new Markers()
  #epochBytes = 0
  #session = 0
  readonly #report: ProtectionReport
  #effects: PrimaryEffect[] = []

  constructor(settings: PrimarySettings) {
    this.#settings = settings
    this.#liveness = new Liveness(settings)
    this.#dirty = settings.disks.map(() => new DirtyMap())
    this.#report = new ProtectionReport(settings.group, this)
  }

  get committed(): number {
    return this.#committed
  }

  get term(): number {
    return this.#term
  }

  get peer(): string | null {
    return this.#peer
  }

  /** Whether the checkpoints that the secondary reported survive its crash. */
  get durable(): boolean {
    return this.#durable
  }

  get replicating(): boolean {
    return this.#replicating && !this.#deposed
  }

  get protection(): Protection {
    switch (this.#link.kind) {
      case 'streaming':
        return 'protected'
      case 'resyncing':
        return 'resyncing'
      case 'greeting':
      case 'down':
        return this.#reason === undefined ? 'connecting' : 'unprotected'
    }
  }

  /** Whether the pair can be protected again without an operator. */
  get heals(): boolean {
    return this.#heals
  }

  get reason(): string | null {
    return this.protection === 'protected' ? null : (this.#reason ?? null)
  }

  /** Why the guest may not write, or undefined when it may. */
  get writeObjection(): string | undefined {
    return this.#deposed ? 'this copy was deposed: its secondary was promoted' : undefined
  }

  dirtyBytes(disk: number): number {
    return Math.min(
      this.#mapOf(disk).dirtyBytes(this.#committed),
      this.#settings.disks[disk]?.size ?? 0,
    )
  }

  /** The next dirty run of a disk for a resync from `committed`, cut to the disk's size. */
  nextDirty(
    disk: number,
    from: number,
    limit: number,
    committed: number,
  ): { at: number; length: number } | undefined {
    const size = this.#settings.disks[disk]?.size ?? 0
    // The last run may end in the middle of a block: what lies behind it is that block again.
    if (from >= size) return undefined
    const run = this.#mapOf(disk).nextDirty(from, limit, committed)
    return run === undefined
      ? undefined
      : { at: run.at, length: Math.min(run.length, size - run.at) }
  }

  /** A guest's write is about to change [at, at + length). */
  writing(disk: number, at: number, length: number): void {
    this.#mapOf(disk).mark(at, length, this.#announced + 1)
  }

  /** A write has failed: what the local image holds there now is in no epoch that was announced. */
  writeFailed(disk: number, at: number, length: number): void {
    this.#mapOf(disk).mark(at, length, this.#announced + 1)
  }

  /**
   * A write has changed the local image and is about to be acknowledged.
   * @returns whether it has to be forwarded first. An answer, not an effect: this is the hot path.
   */
  written(disk: number, at: number, length: number): boolean {
    this.#mapOf(disk).mark(at, length, this.#announced + 1)
    if (this.#link.kind !== 'streaming' && this.#link.kind !== 'resyncing') return false
    this.#epochBytes += length
    return true
  }

  step(input: PrimaryInput): readonly PrimaryEffect[] {
    this.#effects = []
    this.#take(input)
    const news = this.#report.news(this)
    if (news !== undefined) this.#event(news)
    return this.#effects
  }

  #take(input: PrimaryInput): void {
    switch (input.type) {
      case 'link-up':
        this.#liveness.start(input.nowMs)
        this.#peer = input.peer
        this.#link = { kind: 'greeting' }
        this.#send(frame('hello', { payload: encodeHello(this.#hello()) }))
        return
      case 'hello':
        this.#greet(input.hello, input.nowMs)
        return
      case 'refused':
        this.#refused(input.refusal)
        return
      case 'done':
        this.#done(input.checkpoint, input.commitUs, input.nowMs)
        return
      case 'heartbeat':
        this.#liveness.heard(input.nowMs)
        return
      case 'pressure': {
        this.#liveness.heard(input.nowMs)
        const { bytes, limit } = input
        this.#event({
          event: 'REPLICATION_PRESSURE',
          data: { group: this.#settings.group, bytes, limit },
        })
        return
      }
      case 'link-down':
        this.#linkDown(input.reason)
        return
      case 'tick':
        this.#tick(input.nowMs)
        return
      case 'checkpoint':
        this.#checkpoint(input)
        return
      case 'set-replicating':
        this.#setReplicating(input.on)
        return
      case 'resynced':
        this.#resynced(input.session, input.nowMs)
        return
      case 'disk-failed':
        // The image's content is no longer known, so the stream cannot carry it: say so instead of guessing.
        if (this.#link.kind !== 'down') this.#closeLink(input.reason)
        return
    }
  }

  #hello(): Hello {
    const { group, mode, incarnation, disks } = this.#settings
    return {
      protocol: PROTOCOL,
      group,
      mode,
      role: 'primary',
      incarnation,
      partner: this.#partner,
      checkpoint: this.#committed,
      announced: this.#announced,
      term: this.#term,
      disks,
      capacity: 0,
      durable: false,
    }
  }

  #greet(hello: Hello, nowMs: number): void {
    if (this.#link.kind !== 'greeting') return this.#closeLink('the peer sent a second hello')
    this.#heals = true
    this.#liveness.heard(nowMs)
    const objected = objection(this.#hello(), hello)
    if (objected !== undefined) {
      const { code, reason } = objected
      return this.#refused({ code, reason, term: hello.term })
    }
    this.#partner = hello.incarnation
    this.#durable = hello.durable
    this.#commit(hello.checkpoint)
    // What is too much for the secondary shows when it is sent: how much of it is zeroes, nobody knows before.
    const dirty = this.#settings.disks.some(
      (_, disk) => this.nextDirty(disk, 0, 1, this.#committed) !== undefined,
    )
    this.#epochBytes = 0
    this.#session += 1
    this.#link = { kind: 'resyncing', session: this.#session }
    this.#event({
      event: 'REPLICATION_LINK',
      data: { group: this.#settings.group, up: true, peer: this.#peer, reason: null },
    })
    if (!dirty) return this.#resynced(this.#session, nowMs)
    this.#reason = 'sending what changed while the secondary was away'
    this.#effects.push({ type: 'resync', session: this.#session, committed: this.#committed })
  }

  #refused({ code, reason, term }: Refusal): void {
    this.#heals = code === 'unready' || code === 'overflow'
    if (code === 'deposed' && term > this.#term) {
      this.#deposed = true
      const error = `deposed: ${reason}; this copy acknowledges no more writes`
      this.#event({ event: 'REPLICATION_ERROR', data: { group: this.#settings.group, error } })
    }
    this.#closeLink(`refused: ${reason}`)
  }

  #resynced(session: number, nowMs: number): void {
    if (this.#link.kind !== 'resyncing' || this.#link.session !== session) return
    this.#link = { kind: 'streaming' }
    this.#reason = undefined
    for (const request of this.#markers.takeQueued()) this.#announce(request, nowMs)
  }

  #checkpoint(input: Extract<PrimaryInput, { type: 'checkpoint' }>): void {
    const { request, nowMs, timeoutMs } = input
    const wanted = { request, askedMs: nowMs, deadlineMs: nowMs + timeoutMs }
    switch (this.#link.kind) {
      case 'streaming':
        this.#announce(wanted, nowMs)
        return
      case 'resyncing':
        this.#markers.queue(wanted)
        return
      case 'greeting':
      case 'down':
        this.#fail(
          wanted,
          'LINK_LOST',
          `there is no secondary to checkpoint to (${this.#reason ?? 'connecting'})`,
        )
        return
    }
  }

  #announce(waiter: CheckpointRequest, nowMs: number): void {
    if (waiter.deadlineMs <= nowMs)
      return this.#fail(waiter, 'TIMEOUT', 'the resync took longer than the time allowed')
    this.#announced += 1
    this.#markers.sent({ checkpoint: this.#announced, bytes: this.#epochBytes, waiter })
    this.#epochBytes = 0
    this.#send(frame('checkpoint', { position: this.#announced }))
  }

  #done(checkpoint: number, commitUs: number, nowMs: number): void {
    this.#liveness.heard(nowMs)
    const { awaited } = this.#markers
    const marker = awaited === checkpoint ? this.#markers.confirm() : undefined
    if (marker === undefined) {
      return this.#closeLink(
        `the peer reported checkpoint ${checkpoint} as done; awaited: ${awaited ?? 'none'}`,
      )
    }
    this.#commit(checkpoint)
    const { waiter, bytes } = marker
    const pauseUs = waiter === undefined ? commitUs : Math.round((nowMs - waiter.askedMs) * 1000)
    const result: CheckpointResult = { checkpoint, pauseUs, commitUs, bytes }
    this.#event({
      event: 'REPLICATION_CHECKPOINT',
      data: { group: this.#settings.group, ...result },
    })
    if (waiter !== undefined) {
      this.#effects.push({ type: 'checkpoint-done', request: waiter.request, result })
    }
  }

  #commit(checkpoint: number): void {
    assert(
      checkpoint >= this.#committed && checkpoint <= this.#announced,
      'commits move forward to announced numbers',
    )
    if (checkpoint === this.#committed) return
    this.#committed = checkpoint
    for (const map of this.#dirty) map.forget(checkpoint)
  }

  #tick(nowMs: number): void {
    for (const { waiter, checkpoint } of this.#markers.takeOverdue(nowMs)) {
      const reason =
        checkpoint === undefined
          ? 'the resync took longer than the time allowed'
          : `checkpoint ${checkpoint} was not confirmed in time; it may still be committed later`
      this.#fail(waiter, 'TIMEOUT', reason)
    }
    if (this.#link.kind === 'down') return
    const sign = this.#liveness.tick(nowMs)
    if (sign === 'dead') this.#closeLink(`the peer was silent for ${this.#settings.timeoutMs} ms`)
    if (sign === 'beat') this.#send(frame('heartbeat'))
  }

  #setReplicating(on: boolean): void {
    this.#replicating = on
    if (!on && !this.#deposed) {
      this.#reason = 'replication was switched off'
      if (this.#link.kind !== 'down') this.#closeLink(this.#reason)
    }
  }

  /** Asks the shell to end the connection, and treats it as ended from now on. */
  #closeLink(reason: string): void {
    this.#effects.push({ type: 'close-link', reason })
    this.#linkDown(reason)
  }

  #linkDown(reason: string): void {
    if (this.#link.kind === 'down') return
    const wasUp = this.#link.kind !== 'greeting'
    this.#link = { kind: 'down' }
    this.#reason = reason
    const peer = this.#peer
    this.#peer = null
    for (const { waiter, checkpoint } of this.#markers.dropAll()) {
      const what =
        checkpoint === undefined ? '' : `checkpoint ${checkpoint} is not known to be committed: `
      this.#fail(waiter, 'LINK_LOST', `${what}${reason}`)
    }
    if (wasUp)
      this.#event({
        event: 'REPLICATION_LINK',
        data: { group: this.#settings.group, up: false, peer, reason },
      })
  }

  #fail({ request }: CheckpointRequest, code: FaultCode, reason: string): void {
    this.#effects.push({ type: 'checkpoint-failed', request, code, reason })
  }

  #send(outgoing: Frame): void {
    this.#effects.push({ type: 'send', frame: outgoing })
  }

  #event(event: GroupEvent): void {
    this.#effects.push({ type: 'event', event })
  }

  #mapOf(disk: number): DirtyMap {
    const map = this.#dirty[disk]
    assert(map !== undefined, 'a disk of the group has a number below their count')
    return map
  }
}
