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

import { ACKS, type Ack, type Protection, type SideStatus } from '../group.ts'
import { CarriedDisks } from './carried-disks.ts'
import { ChangedBlocks, type Run } from './changed-blocks.ts'
import type { ApartDisks } from './disk-sets.ts'
import { frame, PARTIAL, UNASKED } from './frame.ts'
import {
  ackObjection,
  encodeHello,
  TELLS,
  verdictOn,
  type Hello,
  type Refusal,
} from './handshake.ts'
import { LinkLossPolicy } from './link-loss-policy.ts'
import { Liveness } from './liveness.ts'
import { PrimaryCheckpoints } from './primary-checkpoints.ts'
import { PrimaryDisks } from './primary-disks.ts'
import { PrimaryLead } from './primary-lead.ts'
import { PrimaryOutbox } from './primary-outbox.ts'
import { PrimaryStanding } from './primary-standing.ts'
import { ProtectionReport } from './protection-report.ts'
import type { PrimaryEffect, PrimaryInput, PrimarySettings } from './primary-io.ts'
import { ALONE, DEPOSED, SWITCHED_OFF } from './reasons.ts'
import type { ReplicaState } from './replica-state.ts'
import { ResyncTerms } from './resync-terms.ts'

type Link =
  | { readonly kind: 'down' }
  | { readonly kind: 'greeting'; readonly hello: Hello }
  /** The secondary tells what it changed by itself; then the resync begins. */
  | { readonly kind: 'learning'; readonly copies: boolean; readonly settles: boolean }
  | {
      readonly kind: 'resyncing'
      readonly session: number
      readonly copies: boolean
      readonly settles: boolean
    }
  /** Everything is sent; the secondary is at a checkpoint of this line when `checkpoint` is done. */
  | { readonly kind: 'settling'; readonly checkpoint: number }
  | { readonly kind: 'streaming' }

export class PrimaryMachine {
  readonly #settings: PrimarySettings
  readonly #liveness: Liveness
  readonly #self: PrimaryStanding
  readonly #changed: ChangedBlocks
  readonly #carried: CarriedDisks
  #link: Link = { kind: 'down' }
  #peer: string | null = null
  /** Whether the dirty maps come from an earlier process, which does not say in which epochs. */
  #recalled = true
  #durable = false
  /** What the secondary that is connected can do. */
  #able: Pick<Hello, 'features' | 'durable'> | undefined
  #replicating = true
  readonly #lead: PrimaryLead
  readonly #linkLoss: LinkLossPolicy
  #heals = true
  /** Whether it was the secondary that ended the last link, by a refusal. */
  #refusedLast = false
  /** Why the group is not protected; undefined while it was never anything else than about to connect. */
  #reason: string | undefined
  readonly #checkpoints: PrimaryCheckpoints
  readonly #resync: ResyncTerms
  readonly #disks: PrimaryDisks
  readonly #report: ProtectionReport
  readonly #out: PrimaryOutbox

  constructor(settings: PrimarySettings) {
    this.#settings = settings
    this.#liveness = new Liveness(settings)
    this.#changed = new ChangedBlocks(settings.disks)
    this.#resync = new ResyncTerms(settings)
    this.#carried = new CarriedDisks(settings.disks, settings.remembered.apart)
    this.#linkLoss = new LinkLossPolicy(settings)
    this.#self = new PrimaryStanding(settings)
    this.#out = new PrimaryOutbox()
    this.#lead = new PrimaryLead(settings.group, this.#out)
    this.#checkpoints = new PrimaryCheckpoints(settings, this.#self, this.#out)
    this.#disks = new PrimaryDisks({
      self: this.#self,
      carried: this.#carried,
      changed: this.#changed,
      resync: this.#resync,
      out: this.#out,
    })
    if (this.#self.role === 'active') {
      this.#reason = ALONE
      // Whoever promoted it wants it to serve.
      this.#linkLoss.release()
    }
    this.#report = new ProtectionReport(settings.group, this)
  }

  get role(): 'primary' | 'active' {
    return this.#self.role
  }

  get committed(): number {
    return this.#self.committed
  }

  get term(): number {
    return this.#self.term
  }

  get peer(): string | null {
    return this.#peer
  }

  /** Whether the checkpoints that the secondary reported survive its crash. */
  get durable(): boolean {
    return this.#durable
  }

  get replicating(): boolean {
    return this.#replicating
  }

  get protection(): Protection {
    switch (this.#link.kind) {
      case 'streaming':
        return 'protected'
      case 'learning':
      case 'resyncing':
      case 'settling':
        return 'resyncing'
      case 'greeting':
      case 'down':
        if (this.frozen) return 'frozen'
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

  /** What a status shows of the role. */
  get status(): Omit<SideStatus, 'disks'> {
    const { role, protection, reason, heals, committed: checkpoint, term, durable, peer } = this
    const refused = this.#refusedLast
    return { role, protection, reason, heals, refused, checkpoint, term, durable, peer }
  }

  /** Why the guest may not write, or undefined when it may. */
  get writeObjection(): string | undefined {
    return this.#lead.writeObjection
  }

  /** 14: no write begins and none is acknowledged. */
  get frozen(): boolean {
    if (!this.#linkLoss.freezes || this.#lead.isDeposed) return false
    return this.#link.kind === 'down' || this.#link.kind === 'greeting'
  }

  /** What the secondary has to have of a write before it completes. */
  get ack(): Ack {
    return this.#self.ack
  }

  /** Whether the secondary that is connected tells what it has, without a write that waits for that. */
  get isWindowed(): boolean {
    return this.#able?.features.includes(TELLS) ?? false
  }

  /** Why writes cannot complete that way now, or undefined when they can. */
  ackObjection(ack: Ack): string | undefined {
    return this.#able === undefined ? undefined : ackObjection(ack, this.#able)
  }

  /** Whether no write completes that the secondary has not acknowledged. Else a link that is lost lets them complete. */
  get needsAck(): boolean {
    const link = this.#link
    // A secondary that gets a copy has nothing to take over with before it is whole, which may be hours.
    const copies = (link.kind === 'learning' || link.kind === 'resyncing') && link.copies
    return this.#self.ack !== 'sent' && this.#linkLoss.freezes && !this.#lead.isDeposed && !copies
  }

  /** Whether the secondary is sent everything. */
  get isStreaming(): boolean {
    return this.#link.kind === 'streaming'
  }

  /**
   * Whether a write would change a line that another replica may hold as it is: then a new one is begun first. A side
   * that was deposed refuses the write, so nothing parts.
   */
  get mustFork(): boolean {
    if (this.#lead.isDeposed) return false
    return this.#self.shared && (this.#link.kind === 'down' || this.#link.kind === 'greeting')
  }

  /** What has to be remembered of this side. `announced` is known only if this is the last that is remembered. */
  state(ending: boolean): ReplicaState {
    return this.#self.state(ending, this.#carried.apart)
  }

  /** The shell remembers from an earlier process that a range may differ from the last checkpoint. */
  recall(disk: number, at: number, length: number): void {
    this.#changed.mark(disk, at, length, this.#self.announced + 1)
  }

  dirtyBytes(disk: number): number {
    return this.#changed.bytes(disk, this.#self.committed)
  }

  /** The next run of a disk that is dirty with respect to `committed`. */
  nextDirty(disk: number, from: number, limit: number, committed: number): Run | undefined {
    return this.#changed.next(disk, from, limit, committed)
  }

  unsentBytes(disk: number): number {
    return this.#changed.unsentBytes(disk)
  }

  /** The next run of a disk that a resync has to send. */
  nextUnsent(disk: number, from: number, limit: number): Run | undefined {
    return this.#changed.nextUnsent(disk, from, limit)
  }

  /** Whether the secondary can say what it holds. */
  get peerCompares(): boolean {
    return this.#resync.peerCompares
  }

  /** The secondary's stream holds this range as this side's image does: it need not be sent. */
  foundEqual(disk: number, at: number, length: number): void {
    this.#changed.settle(disk, at, length, this.#self.announced + 1)
  }

  /** It does not: 15, whatever is committed, the range stays dirty until it was sent. */
  foundDifferent(disk: number, at: number, length: number): void {
    this.#changed.needs(disk, at, length)
  }

  /** A guest reads. Hot path. */
  reading(): void {
    this.#lead.use()
  }

  /** A guest's write is about to change [at, at + length). */
  writing(disk: number, at: number, length: number): void {
    this.#lead.use()
    this.#changed.mark(disk, at, length, this.#self.announced + 1)
  }

  /** A write has failed: what the local image holds there now is in no epoch that was announced. */
  writeFailed(disk: number, at: number, length: number): void {
    this.#changed.mark(disk, at, length, this.#self.announced + 1)
  }

  /**
   * A write has changed the local image and is about to be acknowledged.
   * @returns whether it has to be forwarded first. An answer, not an effect: this is the hot path.
   */
  written(disk: number, at: number, length: number): boolean {
    this.#changed.mark(disk, at, length, this.#self.announced + 1)
    const { kind } = this.#link
    // What is written while the secondary still tells what it changed is sent with the resync.
    if (kind !== 'streaming' && kind !== 'settling' && kind !== 'resyncing') return false
    if (!this.#carried.carries(disk)) return false
    this.#checkpoints.carry(length)
    return true
  }

  /** Whether the secondary holds a disk as of its last checkpoint. */
  counts(disk: number): boolean {
    return this.#carried.carried.includes(disk)
  }

  /** Whether the stream carries a disk. */
  carries(disk: number): boolean {
    return this.#carried.carries(disk)
  }

  /** The number of a disk on the link that carries it. */
  numberOf(disk: number): number {
    return this.#carried.numberOf(disk)
  }

  /** See CarriedDisks. */
  meant(number: number): number | 'removed' | undefined {
    return this.#carried.meant(number)
  }

  /** The disks that no checkpoint has. */
  get apart(): ApartDisks {
    return this.#carried.apart
  }

  /** The same, and those that the other side has in none: it gets a copy of them. */
  get lacking(): ApartDisks {
    return this.#carried.lacking
  }

  /** Bytes that a disk has on the secondary; undefined while no link carries it. */
  sizeThere(disk: number): number | undefined {
    return this.#link.kind === 'down' ? undefined : this.#carried.sizeThere(disk)
  }

  /** Whether the copy of added disks may put more into the present epoch. */
  get copyHasRoom(): boolean {
    return this.#link.kind !== 'streaming' || this.#carried.hasRoom(this.#self.announced)
  }

  /** A resync has sent so many bytes. @returns whether the shell has to say `part-sent` */
  resent(disk: number, at: number, length: number): boolean {
    this.#changed.sent(disk, at, length, this.#self.announced + 1)
    this.#checkpoints.carry(length)
    if (this.#link.kind !== 'resyncing') {
      this.#carried.spend(length, this.#self.announced)
      return false
    }
    return this.#resync.isPart(this.#link.copies, this.#checkpoints.epochBytes)
  }

  step(input: PrimaryInput): readonly PrimaryEffect[] {
    this.#take(input)
    const news = this.#report.news(this)
    if (news !== undefined) this.#out.event(news)
    // Last: what this does is the next step of this machine, and tells of what comes after.
    this.#lead.stepDown()
    return this.#out.take()
  }

  #take(input: PrimaryInput): void {
    switch (input.type) {
      case 'link-up': {
        // It may have been made before the switch, and have waited since for a new line to be remembered.
        if (!this.#replicating) return this.#closeLink(SWITCHED_OFF)
        this.#liveness.start(input.nowMs)
        this.#peer = input.peer
        this.#carried.number()
        const hello = this.#self.hello(this.#carried.hello)
        this.#link = { kind: 'greeting', hello }
        this.#out.send(frame('hello', { payload: encodeHello(hello) }))
        return
      }
      case 'hello':
        this.#greet(input.hello, input.nowMs)
        return
      case 'refused':
        this.#refused(input.refusal)
        return
      case 'changed':
        this.#liveness.heard(input.nowMs)
        if (this.#link.kind === 'learning')
          this.#changed.mark(input.disk, input.at, input.length, this.#self.announced + 1)
        else this.#closeLink('the secondary told of a change out of turn')
        return
      case 'ready':
        this.#ready(input.nowMs)
        return
      case 'called':
        this.#called(input.hello)
        return
      case 'fork':
        this.#self.fork(input.generation)
        return
      case 'done':
        this.#done(input.checkpoint, input.commitUs, input.nowMs)
        return
      case 'heartbeat':
      case 'acknowledged':
        this.#liveness.heard(input.nowMs)
        return
      case 'pressure': {
        this.#liveness.heard(input.nowMs)
        const { bytes, limit } = input
        this.#out.event({
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
      case 'discard':
        this.#self.discard = input.whose
        return
      case 'configure':
        if (input.onLinkLoss !== undefined) this.#linkLoss.configure(input.onLinkLoss)
        if (input.ack !== undefined) this.#acknowledgeFrom(input.ack)
        this.#checkpoints.intervalMs = input.intervalMs ?? this.#checkpoints.intervalMs
        return
      case 'fenced':
        // An answer that comes when the link is back is about the past.
        if (input.fenced && this.frozen) this.#linkLoss.release()
        return
      case 'copy-again':
        this.#copyAgain(input.comparesFirst)
        return
      case 'repair':
        this.#repair(input.nowMs)
        return
      case 'part-sent':
        this.#checkpoints.mark(undefined, PARTIAL)
        return
      case 'resynced':
        this.#resynced(input.session, input.nowMs)
        return
      case 'disk-added':
        return this.#afterDisks(this.#disks.add(input.disk), `disk "${input.disk.name}" was added`)
      case 'disk-removed':
        this.#disks.remove(input.disk)
        return this.#afterDisks(undefined, 'a disk was removed')
      case 'disk-grown':
        return this.#afterDisks(this.#disks.grow(input.disk, input.size), 'a disk has grown')
      case 'disk-news':
        return this.#diskNews(input)
      case 'disk-failed':
        // The image's content is no longer known, so the stream cannot carry it: say so instead of guessing.
        if (this.#link.kind !== 'down') this.#closeLink(input.reason)
        return
    }
  }

  #greet(hello: Hello, nowMs: number): void {
    if (this.#link.kind !== 'greeting') return this.#closeLink('the peer sent a second hello')
    this.#heals = true
    this.#liveness.heard(nowMs)
    const sent = this.#link.hello
    const verdict = verdictOn(sent, hello)
    if (verdict.kind === 'refuse') {
      const { code, reason } = verdict
      return this.#refused({ code, reason, term: hello.term })
    }
    if (sent.generation !== this.#self.generation)
      return this.#closeLink('a guest wrote while the secondary was being greeted')
    const copies = verdict.resync === 'everything'
    this.#base(copies, verdict.at, Math.max(hello.announced ?? 0, hello.checkpoint))
    this.#carried.greet(sent, hello, copies)
    this.#disks.greet(hello)
    // One that settles is part of this line with its first checkpoint, and until then of its own.
    if (!verdict.settles) this.#self.shared = true
    this.#able = hello
    this.#refusedLast = false
    this.#durable = hello.durable
    if (this.#self.ack !== 'sent' || this.isWindowed) this.#acknowledgeFrom(this.#self.ack)
    this.#self.term = Math.max(this.#self.term, hello.term)
    this.#resync.greet(hello)
    this.#checkpoints.begin()
    this.#reason = 'hearing what the secondary changed by itself'
    this.#link = { kind: 'learning', copies, settles: verdict.settles }
    this.#out.event({
      event: 'REPLICATION_LINK',
      data: { group: this.#settings.group, up: true, peer: this.#peer, reason: null },
    })
  }

  /** What the secondary has, and hence what is dirty. Numbers that either side has used are not used again. */
  #base(copies: boolean, at: number, used: number): void {
    this.#self.learn(used)
    if (this.#recalled) this.#changed.unsend(this.#self.committed)
    this.#recalled = false
    if (!copies) return this.#commit(at)
    this.#changed.markAll(this.#self.announced + 1)
  }

  #acknowledgeFrom(ack: Ack): void {
    this.#self.ack = ack
    if (this.#able !== undefined)
      this.#out.send(frame('acknowledge', { position: ACKS.indexOf(ack) }))
  }

  #ready(nowMs: number): void {
    this.#liveness.heard(nowMs)
    if (this.#link.kind !== 'learning')
      return this.#closeLink('the secondary was ready out of turn')
    const { copies, settles } = this.#link
    this.#changed.unsend(this.#self.committed)
    this.#reason = copies
      ? 'copying the disks to the secondary'
      : 'sending what changed while the secondary was away'
    this.#send(copies, settles, nowMs)
  }

  /** Sends what has to be sent. What is too much for the secondary shows then: how much of it is zeroes, nobody knows before. */
  #send(copies: boolean, settles: boolean, nowMs: number): void {
    const session = this.#resync.nextSession()
    this.#carried.interrupt()
    const disks = this.#carried.carried
    this.#link = { kind: 'resyncing', session, copies, settles }
    if (!this.#changed.anyUnsent(disks)) return this.#resynced(session, nowMs)
    this.#out.add({ type: 'resync', session, copies, compares: this.#resync.comparesFirst, disks })
  }

  /** A verify has found what has to be sent again. Without a secondary the next resync does it. */
  #repair(nowMs: number): void {
    if (this.#link.kind !== 'streaming') return
    this.#reason = 'sending what a verify has found to differ'
    this.#send(false, false, nowMs)
  }

  #refused({ code, reason, term }: Refusal): void {
    this.#heals = code === 'unready' || code === 'overflow'
    if (code === 'overflow' && this.#link.kind === 'resyncing') this.#resync.split()
    if (code === 'deposed' || (code === 'split' && term > this.#self.term)) this.#depose(reason)
    this.#closeLink(`refused: ${reason}`)
    this.#refusedLast = true
  }

  /** @param objection why the link cannot go on with the disks as they are now, where it cannot */
  #afterDisks(objection: string | undefined, change: string): void {
    // The hello that was sent tells of other disks.
    if (this.#link.kind === 'greeting') this.#closeLink(change)
    else if (objection !== undefined) this.#closeLink(objection)
  }

  #diskNews(input: Extract<PrimaryInput, { type: 'disk-news' }>): void {
    this.#liveness.heard(input.nowMs)
    const objection = this.#disks.hear(input)
    if (objection !== undefined) return this.#closeLink(objection)
    if (this.#link.kind === 'streaming') this.#disks.copy()
  }

  #depose(reason: string): void {
    this.#heals = this.#lead.depose(reason) ?? this.#heals
  }

  /** Another primary would have this side follow it. */
  #called(hello: Hello): void {
    const ours = this.#self.hello(this.#carried.hello)
    const verdict = verdictOn(hello, ours)
    const answer = (code: Refusal['code'], reason: string): void => {
      this.#out.add({ type: 'answer', refusal: { code, reason, term: this.#self.term } })
    }
    if (verdict.kind === 'refuse') {
      if (verdict.code === 'split' && hello.term > this.#self.term) this.#depose(verdict.reason)
      return answer(verdict.code, verdict.reason)
    }
    this.#depose('the other side was promoted, or an operator has chosen its data')
    if (this.#lead.isUsed)
      answer('unready', 'the other side is still a primary: stop its guest, then demote it')
    else answer('unready', 'the other side is becoming a secondary')
    if (this.#lead.isUsed) this.#reason = DEPOSED
    if (this.#link.kind !== 'down') this.#closeLink(DEPOSED)
  }

  #resynced(session: number, nowMs: number): void {
    if (this.#link.kind === 'streaming' && this.#carried.isCopy(session))
      return this.#disks.copied()
    if (this.#link.kind !== 'resyncing' || this.#link.session !== session) return
    const settles = this.#link.settles || this.#link.copies || this.#resync.inParts
    this.#resync.sent()
    if (!settles) this.#streaming()
    const before = this.#self.announced
    this.#checkpoints.announceQueued(nowMs)
    if (!settles) return
    // A checkpoint that was asked for does as well, unless its time is over.
    if (this.#self.announced === before) this.#checkpoints.mark(undefined, UNASKED)
    if (this.#link.copies) this.#carried.countWith(before + 1)
    this.#reason = 'awaiting the first checkpoint of the copy'
    this.#link = { kind: 'settling', checkpoint: before + 1 }
  }

  #streaming(): void {
    this.#lead.use()
    this.#link = { kind: 'streaming' }
    this.#reason = undefined
    this.#linkLoss.arm()
    this.#self.discard = null
    this.#out.send(frame('synced'))
    this.#disks.copy()
    if (this.#self.role === 'primary') return
    this.#self.role = 'primary'
    this.#out.event({
      event: 'REPLICATION_ROLE',
      data: { group: this.#settings.group, role: 'primary', term: this.#self.term },
    })
  }

  #checkpoint(input: Extract<PrimaryInput, { type: 'checkpoint' }>): void {
    const { request, nowMs, timeoutMs } = input
    const wanted = { request, askedMs: nowMs, deadlineMs: nowMs + timeoutMs }
    switch (this.#link.kind) {
      case 'streaming':
      case 'settling':
        this.#checkpoints.announce(wanted, nowMs)
        return
      case 'learning':
      case 'resyncing':
        this.#checkpoints.queue(wanted)
        return
      case 'greeting':
      case 'down':
        this.#checkpoints.fail(
          wanted,
          'LINK_LOST',
          `there is no secondary to checkpoint to (${this.#reason ?? 'connecting'})`,
        )
        return
    }
  }

  #done(checkpoint: number, commitUs: number, nowMs: number): void {
    this.#liveness.heard(nowMs)
    const { awaited } = this.#checkpoints
    const marker = this.#checkpoints.confirm(checkpoint)
    if (marker === undefined) {
      return this.#closeLink(
        `the peer reported checkpoint ${checkpoint} as done; awaited: ${awaited ?? 'none'}`,
      )
    }
    this.#commit(checkpoint)
    if (marker.partial) return
    if (this.#carried.done(checkpoint)) this.#out.add({ type: 'remember' })
    if (this.#link.kind === 'settling' && checkpoint >= this.#link.checkpoint) this.#streaming()
    this.#checkpoints.report(marker, commitUs, nowMs)
  }

  #commit(checkpoint: number): void {
    if (this.#self.commit(checkpoint)) this.#changed.forget(checkpoint)
  }

  #tick(nowMs: number): void {
    this.#checkpoints.giveUpOverdue(nowMs)
    if (this.#link.kind === 'down') return
    if (this.#link.kind === 'streaming') this.#checkpoints.markIfDue(nowMs)
    const sign = this.#liveness.tick(nowMs)
    if (sign === 'dead') this.#closeLink(`the peer was silent for ${this.#settings.timeoutMs} ms`)
    if (sign === 'beat') this.#out.send(frame('heartbeat'))
  }

  /** Everything counts as changed; the next connection sends it, in parts. */
  #copyAgain(comparesFirst: boolean): void {
    this.#changed.markAll(this.#self.announced + 1)
    this.#resync.copyAgain(comparesFirst)
    if (this.#link.kind !== 'down') this.#closeLink('an operator asked for a copy of everything')
  }

  #setReplicating(on: boolean): void {
    this.#replicating = on
    this.#heals = on
    if (on) return
    this.#reason = SWITCHED_OFF
    this.#refusedLast = false
    if (this.#link.kind !== 'down') this.#closeLink(SWITCHED_OFF)
  }

  /** Asks the shell to end the connection, and treats it as ended from now on. */
  #closeLink(reason: string): void {
    this.#out.add({ type: 'close-link', reason })
    this.#linkDown(reason)
  }

  #linkDown(reason: string): void {
    if (this.#link.kind === 'down') return
    const wasUp = this.#link.kind !== 'greeting'
    this.#able = undefined
    if (this.#link.kind === 'resyncing' && this.#link.copies) this.#resync.split()
    this.#link = { kind: 'down' }
    this.#carried.down()
    this.#disks.down()
    this.#reason = reason
    this.#refusedLast = false
    const peer = this.#peer
    this.#peer = null
    if (wasUp && this.#settings.fences && !this.#lead.isDeposed)
      this.#out.add({ type: 'fence', peer: peer ?? '' })
    this.#checkpoints.giveUpAll(reason)
    if (wasUp)
      this.#out.event({
        event: 'REPLICATION_LINK',
        data: { group: this.#settings.group, up: false, peer, reason },
      })
  }
}
