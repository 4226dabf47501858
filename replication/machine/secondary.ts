/**
 * The secondary's side of a group, as a pure machine: inputs in, effects out; no socket, no clock, no payload bytes.
 *
 * Invariants kept here (numbers of the replication model in docs/architecture.md):
 *  - 1  Prefix: data of a broken-off stream is discarded with the link, before anything of a new one is taken.
 *  - 3  No early ack: `done` is sent only after the shell reported the epoch as committed.
 *  - 8  The loss of the link is told, and fails who waits for a checkpoint, after every commit that was begun (link-news.ts).
 *  - 10 The decision to promote is taken once, remembered before it is carried out, and comes after every commit that was
 *       begun; afterwards every primary is refused with a higher term.
 *  - 17 No mixture is promoted unless by force: neither one that is here nor one that is being committed (takeover.ts).
 *  - 18 A hello is judged by the function that the primary uses too (handshake.ts).
 *  - 22 Promoting twice is promoting once.
 */

import { assert } from '../../core/assert.ts'
import type { CheckpointResult, GroupRole, Protection } from '../group.ts'
import { CheckpointWaiters } from './checkpoint-waiters.ts'
import { helloDisks, without, type ApartDisks } from './disk-sets.ts'
import { frame, type Frame } from './frame.ts'
import {
  encodeHello,
  FEATURES,
  PROTOCOL,
  verdictOn,
  type DiskIdentity,
  type Hello,
  type RefusalCode,
} from './handshake.ts'
import { Congestion } from './congestion.ts'
import { LinkDisks } from './link-disks.ts'
import { Liveness } from './liveness.ts'
import { LinkNews } from './link-news.ts'
import { Pressure } from './pressure.ts'
import { ProtectionReport } from './protection-report.ts'
import { ALONE, STUCK, SWITCHED_OFF_THERE } from './reasons.ts'
import type { Lineage, ReplicaState } from './replica-state.ts'
import type { SecondaryEffect, SecondaryInput, SecondarySettings } from './secondary-io.ts'
import { SecondaryOutbox } from './secondary-outbox.ts'
import { objectionTo, Takeover } from './takeover.ts'

interface Link {
  readonly number: number
  readonly peer: string
  readonly disks: LinkDisks
  /** What this side is part of with the next commit. */
  readonly lineage: Lineage
  /** Whether the primary says that everything is sent. */
  synced: boolean
}

/** A marker that was received, and is not committed yet. */
interface Commit {
  readonly checkpoint: number
  readonly bytes: number
  /** The link that it came on. */
  readonly link: number
  /** What this side is then. */
  readonly state: ReplicaState
  /** Whether it answers a command on this side, as it answers one on the primary. */
  readonly asked: boolean
  /** Bytes that it has of a disk, by name. */
  readonly sizes: ReadonlyMap<string, number>
}

/** Data may wait without any progress for so many times the silence that a dead peer is known by. */
const STUCK_TIMEOUTS = 4

export class SecondaryMachine {
  readonly #settings: SecondarySettings
  readonly #liveness: Liveness
  readonly #congestion: Congestion
  #disks: DiskIdentity[]
  #link: Link | undefined
  #role: GroupRole = 'secondary'
  /** As it is remembered; a promote and each commit replace it. */
  #state: ReplicaState
  #announced: number
  /** How often a disk became a mixture, by name. */
  readonly #mixtures = new Map<string, number>()
  #discard: Hello['discard'] = null
  /** Begun and not ended, oldest first. */
  #commits: Commit[] = []
  readonly #takeover = new Takeover()
  /** Whether the primary that is being greeted leads on from the state that is here. */
  #joins = false
  /** Whether it sends all disks as a whole. */
  #everything = false
  #logError: string | undefined
  /** The highest that was heard of. */
  #term: number
  #replicating = true
  #reason: string | undefined
  #epochBytes = 0
  readonly #pressure: Pressure
  readonly #waiters = new CheckpointWaiters()
  readonly #report: ProtectionReport
  readonly #news: LinkNews
  readonly #out = new SecondaryOutbox()

  constructor(settings: SecondarySettings) {
    this.#settings = settings
    this.#liveness = new Liveness(settings)
    this.#pressure = new Pressure(settings.capacity)
    this.#congestion = new Congestion(STUCK_TIMEOUTS * settings.timeoutMs)
    this.#disks = [...settings.disks]
    this.#state = { ...settings.remembered, role: 'secondary' }
    this.#announced = settings.remembered.checkpoint
    this.#term = settings.remembered.term
    this.#report = new ProtectionReport(settings.group, this)
    this.#news = new LinkNews(settings.group)
  }

  get role(): GroupRole {
    return this.#role
  }

  get committed(): number {
    return this.#state.checkpoint
  }

  /** Whether what is here is a state of a disk, rather than a mixture. */
  get consistent(): boolean {
    return this.#state.consistent
  }

  /** How often what is here of a disk became no state of it. */
  mixturesOf(name: string): number {
    return this.#mixtures.get(name) ?? 0
  }

  get state(): ReplicaState {
    return this.#state
  }

  get term(): number {
    return this.#term
  }

  /** Whether this side takes over as soon as that can be decided and remembered. */
  get isTakingOver(): boolean {
    return this.#takeover.isUnderWay
  }

  get peer(): string | null {
    return this.#link?.peer ?? null
  }

  get protection(): Protection {
    if (this.#link !== undefined) return this.#link.synced ? 'protected' : 'resyncing'
    if (!this.#state.consistent) return 'inconsistent'
    return this.#reason === undefined ? 'connecting' : 'unprotected'
  }

  get reason(): string | null {
    return this.protection === 'protected' ? null : (this.#reason ?? null)
  }

  /**
   * Our index of the disk that a data frame on `link` concerns, undefined where that was removed here, or why the frame
   * must not be taken. Hot path.
   */
  diskOf(link: number, data: Frame): number | string | undefined {
    const length = data.type === 'write' ? data.payload.length : data.extent
    const disk = this.#rangeOf(link, data, length)
    if (typeof disk === 'number') this.#epochBytes += length
    return disk
  }

  /** The same for a question about what a disk holds. */
  diskAsked(link: number, question: Frame): number | string | undefined {
    return this.#rangeOf(link, question, question.extent)
  }

  #rangeOf(
    link: number,
    { disk: number, position }: Frame,
    length: number,
  ): number | string | undefined {
    if (this.#link?.number !== link) return 'data on a link that is not the current one'
    const name = this.#link.disks.nameOf(number)
    if (name === null) return undefined
    const disk = this.#disks.findIndex((each) => each.name === name)
    const size = this.#disks[disk]?.size
    if (size === undefined) return `data for disk ${number}, which does not exist`
    if (position % 512 !== 0 || length % 512 !== 0 || length === 0)
      return 'data that is not whole sectors'
    if (position + length > size) return `data beyond the end of disk ${number}`
    return disk
  }

  step(input: SecondaryInput): readonly SecondaryEffect[] {
    this.#take(input)
    const news = this.#report.news(this)
    if (news !== undefined) this.#out.event(news)
    return this.#out.take()
  }

  #take(input: SecondaryInput): void {
    switch (input.type) {
      case 'hello':
        return this.#greet(input)
      case 'checkpoint':
        return this.#checkpoint(input)
      case 'synced':
        return this.#synced(input.link, input.nowMs)
      case 'heartbeat':
        if (this.#link?.number === input.link) this.#liveness.heard(input.nowMs)
        return
      case 'committed':
        return this.#afterCommit(input.checkpoint, input.commitUs)
      case 'log-failed':
        return this.#logFailed(input.reason)
      case 'log-restarted':
        this.#logError = undefined
        return
      case 'remembered':
        return this.#becomeActive()
      case 'remember-failed':
        return this.#stayPassive(input.reason, '; promote it when it can be remembered')
      case 'held':
        return this.#held(input)
      case 'overflow':
        return this.#refuseCurrent(
          'overflow',
          `the epoch, of ${this.#epochBytes} bytes so far, outgrew what the secondary can hold: there is no room left in ${input.lack}; checkpoint more often, or give the secondary more of that`,
        )
      case 'link-down':
        if (this.#link?.number === input.link) this.#linkDown(input.reason)
        return
      case 'ended':
        this.#commits = []
        return this.#tellLoss()
      case 'tick':
        return this.#tick(input.nowMs)
      case 'promote':
        return this.#promote(input)
      case 'handover':
        return this.#handover(input)
      case 'fenced':
        return this.#fenced(input)
      case 'discard':
        this.#discard = input.whose
        return
      case 'await-checkpoint':
        return this.#awaitCheckpoint(input)
      case 'set-replicating':
        return this.#setReplicating(input.on)
      case 'offer':
        return this.#offered(input)
      case 'withdraw':
      case 'complete':
        return this.#diskNews(input)
      case 'disk-added':
        return this.#added(input.disk)
      case 'disk-removed':
        return this.#removed(input.name)
      case 'disk-grown':
        return this.#grown(input.disk)
    }
  }

  #hello(): Hello {
    const { group, mode, replica, capacity, durable } = this.#settings
    const { generation, history, checkpoint, consistent, wrote } = this.#state
    return {
      ...{ generation, history, checkpoint, consistent, wrote },
      protocol: PROTOCOL,
      group,
      mode,
      durable,
      role: 'secondary',
      replica,
      announced: this.#announced,
      term: this.#term,
      disks: helloDisks(this.#disks, this.#state.apart),
      capacity,
      discard: this.#discard,
      identical: false,
      ack: 'sent',
      features: FEATURES,
    }
  }

  #greet({ hello, link, peer, nowMs }: Extract<SecondaryInput, { type: 'hello' }>): void {
    const objected = this.#objectionTo(hello)
    if (objected !== undefined) return this.#refuse(link, objected.code, objected.reason)
    if (this.#link !== undefined) {
      const reason = 'the primary came back on a new connection'
      this.#out.add({ type: 'close-link', link: this.#link.number, reason })
      this.#linkDown(reason)
    }
    const { generation, history } = hello
    const ours = this.#hello()
    this.#link = {
      number: link,
      peer,
      disks: new LinkDisks(hello, ours, this.#everything),
      lineage: { generation, history },
      synced: false,
    }
    this.#liveness.start(nowMs)
    this.#term = Math.max(this.#term, hello.term)
    this.#reason = undefined
    const before = encodeHello(this.#hello())
    // What is here is a state of the primary's line already.
    if (this.#joins) this.#state = { ...this.#state, generation, history }
    this.#out.send(link, frame('hello', { payload: before }))
    this.#out.add({ type: 'tell-changes', link })
    for (const event of this.#news.up(peer)) this.#out.event(event)
  }

  /** The number of a disk of ours, as frames to the primary have to name it; -1 where it is not on the link. */
  diskFor(link: number, disk: number): number {
    const name = this.#disks[disk]?.name
    return this.#link?.number === link && name !== undefined ? this.#link.disks.numberOf(name) : -1
  }

  #objectionTo(hello: Hello): { code: RefusalCode; reason: string } | undefined {
    const verdict = verdictOn(hello, this.#hello())
    if (verdict.kind === 'refuse') return verdict
    this.#joins = !verdict.settles
    this.#everything = verdict.resync === 'everything'
    if (!this.#replicating) return { code: 'configuration', reason: SWITCHED_OFF_THERE }
    if (this.#congestion.stuck) return { code: 'unready', reason: STUCK }
    if (this.#logError !== undefined) {
      this.#out.add({ type: 'restart-log' })
      return { code: 'unready', reason: this.#logError }
    }
    if (this.#takeover.isUnderWay)
      return { code: 'unready', reason: 'the secondary is being promoted' }
    return undefined
  }

  #checkpoint(input: Extract<SecondaryInput, { type: 'checkpoint' }>): void {
    const { link, checkpoint, partial, asked, nowMs } = input
    if (this.#link?.number !== link) return
    this.#liveness.heard(nowMs)
    if (checkpoint <= this.#announced) {
      const reason = `the primary announced checkpoint ${checkpoint} after ${this.#announced}`
      this.#out.add({ type: 'close-link', link, reason })
      return this.#linkDown(reason)
    }
    this.#announced = checkpoint
    const state: ReplicaState = {
      ...this.#link.lineage,
      role: 'secondary',
      term: this.#term,
      wrote: false,
      consistent: !partial,
      checkpoint,
      apart: this.#link.disks.apart(this.#disks),
      announced: null,
    }
    const { disks } = this.#link
    const sizes = new Map(this.#disks.map(({ name }) => [name, disks.sizeOf(name)]))
    this.#commits.push({ checkpoint, bytes: this.#epochBytes, link, state, asked, sizes })
    this.#epochBytes = 0
    this.#pressure.relieve()
    this.#out.add({ type: 'commit', checkpoint, state })
  }

  #offered({ link, disk, nowMs }: Extract<SecondaryInput, { type: 'offer' }>): void {
    if (this.#link?.number !== link) return
    this.#liveness.heard(nowMs)
    this.#link.disks.offer(disk.name, disk)
    this.#accept()
  }

  #accept(): void {
    if (this.#link === undefined) return
    for (const { number: disk, size: extent } of this.#link.disks.accept(this.#disks))
      this.#out.send(this.#link.number, frame('accept', { disk, extent }))
  }

  #diskNews({
    type,
    link,
    number,
    nowMs,
  }: Extract<SecondaryInput, { type: 'withdraw' | 'complete' }>): void {
    if (this.#link?.number !== link) return
    this.#liveness.heard(nowMs)
    const { disks } = this.#link
    const name = disks.nameOf(number) ?? disks.offered(number)
    if (name === undefined) return
    if (type === 'complete') disks.complete(name)
    else disks.withdraw(name)
  }

  /** It is in no checkpoint before a primary has sent all of it. */
  #added(disk: DiskIdentity): void {
    this.#disks.push(disk)
    this.#stand((apart) => ({ ...apart, [disk.name]: 'partial' }))
    this.#accept()
  }

  #removed(name: string): void {
    const number = this.#link?.disks.numberOf(name) ?? -1
    this.#disks = this.#disks.filter((disk) => disk.name !== name)
    this.#mixtures.delete(name)
    this.#stand((apart) => without(apart, name))
    if (this.#link === undefined) return
    if (number !== -1) this.#out.send(this.#link.number, frame('withdraw', { disk: number }))
    this.#link.disks.drop(name)
  }

  #grown({ name, size }: DiskIdentity): void {
    this.#disks = this.#disks.map((disk) => (disk.name === name ? { name, size } : disk))
    if (this.#link === undefined) return
    const number = this.#link.disks.numberOf(name)
    if (number !== -1)
      this.#out.send(this.#link.number, frame('resized', { disk: number, extent: size }))
    this.#accept()
  }

  /** Also of what is about to be remembered. */
  #stand(change: (apart: ApartDisks) => ApartDisks): void {
    this.#state = { ...this.#state, apart: change(this.#state.apart) }
    this.#commits = this.#commits.map((commit) => ({
      ...commit,
      state: { ...commit.state, apart: change(commit.state.apart) },
    }))
  }

  #synced(link: number, nowMs: number): void {
    if (this.#link?.number !== link) return
    this.#liveness.heard(nowMs)
    this.#link.synced = true
    this.#discard = null
  }

  #afterCommit(checkpoint: number, commitUs: number): void {
    const commit = this.#commits.shift()
    assert(commit?.checkpoint === checkpoint, 'epochs are committed in order')
    const before = this.#state
    this.#state = commit.state
    const { bytes, state } = commit
    for (const { name } of this.#disks)
      if (!state.consistent || state.apart[name] !== undefined)
        this.#mixtures.set(name, this.mixturesOf(name) + 1)
    this.#forgetChanges(before, commit)
    if (!state.consistent) return this.#afterPart(commit, commitUs)
    const result: CheckpointResult = { checkpoint, pauseUs: commitUs, commitUs, bytes }
    // Where the link broke meanwhile, the primary learns of this commit from the next hello.
    if (this.#link?.number === commit.link)
      this.#out.send(commit.link, frame('done', { position: checkpoint, extent: commitUs }))
    this.#out.event({
      event: 'REPLICATION_CHECKPOINT',
      data: { group: this.#settings.group, ...result },
    })
    if (commit.asked)
      for (const request of this.#waiters.committed(result))
        this.#out.add({ type: 'checkpoint-done', request, result })
    this.#decide()
  }

  /** What this side changed by itself was sent to it by now; and so was a disk that is in no earlier checkpoint. */
  #forgetChanges({ wrote, consistent, apart }: ReplicaState, { state, sizes }: Commit): void {
    if (!state.consistent) return
    const all = wrote || !consistent
    if (all) this.#discard = null
    const isSent = (name: string): boolean => all || apart[name] !== undefined
    const ends = this.#disks.map(({ name }) => (isSent(name) ? (sizes.get(name) ?? 0) : 0))
    if (all || ends.some((end) => end > 0)) this.#out.add({ type: 'forget-changes', ends })
  }

  /** A part of a copy is nothing that anybody waits for. */
  #afterPart({ checkpoint, link }: Commit, commitUs: number): void {
    if (this.#link?.number === link)
      this.#out.send(link, frame('done', { position: checkpoint, extent: commitUs }))
    this.#decide()
  }

  /** The primary has to send again what was lost: it learns from the next hello how far this side is. */
  #logFailed(reason: string): void {
    this.#logError = reason
    if (this.#role === 'active') return
    this.#commits = []
    // What it was to take over cannot be committed: an operator has to decide.
    this.#takeover.disinherit()
    this.#announced = this.#state.checkpoint
    if (this.#link === undefined) this.#discardPending()
    else this.#refuseCurrent('unready', reason)
    this.#decide()
  }

  #awaitCheckpoint({
    request,
    nowMs,
    timeoutMs,
  }: Extract<SecondaryInput, { type: 'await-checkpoint' }>): void {
    const result = this.#waiters.takeUntold()
    if (result !== undefined) {
      this.#out.add({ type: 'checkpoint-done', request, result })
      return
    }
    if (this.#role === 'active')
      return this.#out.failCheckpoint(
        request,
        'NOT_PERMITTED',
        'this side is active and has no secondary',
      )
    if (this.#link === undefined && this.#commits.length === 0)
      return this.#out.failCheckpoint(
        request,
        'LINK_LOST',
        `no primary is connected (${this.#reason ?? 'waiting for one'})`,
      )
    this.#waiters.wait(request, nowMs + timeoutMs)
  }

  /** A guest of the primary must not wait for ever for a disk that takes nothing. */
  #held(input: Extract<SecondaryInput, { type: 'held' }>): void {
    this.#measure(input.bytes, input.spilledBytes)
    if (!this.#congestion.look(input)) return
    const { group } = this.#settings
    this.#out.event({ event: 'REPLICATION_ERROR', data: { group, error: STUCK } })
    this.#refuseCurrent('unready', STUCK)
  }

  #measure(bytes: number, spilledBytes: number): void {
    const { capacity: limit, group } = this.#settings
    if (!this.#pressure.rises(bytes, spilledBytes)) return
    if (this.#link !== undefined)
      this.#out.send(this.#link.number, frame('pressure', { position: bytes, extent: limit }))
    const data = { group, bytes, limit, spilledBytes }
    this.#out.event({ event: 'REPLICATION_PRESSURE', data })
  }

  #tick(nowMs: number): void {
    const overdue = this.#waiters.takeOverdue(nowMs)
    this.#out.failCheckpoints(overdue, 'TIMEOUT', 'the primary announced no checkpoint in time')
    if (this.#link === undefined) return
    const link = this.#link.number
    const sign = this.#liveness.tick(nowMs)
    if (sign === 'beat') this.#out.send(link, frame('heartbeat'))
    if (sign === 'dead') {
      const reason = `the primary was silent for ${this.#settings.timeoutMs} ms`
      this.#out.add({ type: 'close-link', link, reason })
      this.#linkDown(reason)
    }
  }

  #promote({ request, force, generation }: Extract<SecondaryInput, { type: 'promote' }>): void {
    if (this.#role === 'active') return this.#out.add({ type: 'promoted', request })
    const objection = force ? undefined : this.#promoteObjection()
    if (objection !== undefined) {
      this.#out.add({ type: 'promote-refused', request, reason: objection })
      return
    }
    this.#takeover.ask(request, force, generation, this.#link?.number)
    if (this.#link === undefined) this.#discardPending()
    else this.#linkDown('the secondary is being promoted')
    this.#decide()
  }

  /** A planned exchange of the roles: nobody else is active, and this side has all that there is. */
  #handover({ link, checkpoint, generation }: Extract<SecondaryInput, { type: 'handover' }>): void {
    if (this.#link?.number !== link || this.#role === 'active') return
    // Empty epochs may have followed it: their commits come first.
    const newest = this.#commits.at(-1)?.checkpoint ?? this.#state.checkpoint
    if (newest < checkpoint || this.#epochBytes > 0) {
      const found = newest < checkpoint ? `is at ${newest}` : `was sent more after it`
      const reason = `the primary left its role at checkpoint ${checkpoint}, but this side ${found}: promote the other one, which has all data`
      this.#out.add({ type: 'close-link', link, reason })
      return this.#linkDown(reason)
    }
    this.#takeover.inherit(generation)
    this.#linkDown('the primary has left its role to this side')
    this.#decide()
  }

  /** Who fences has answered; meanwhile the primary may have come back, or an operator may have decided. */
  #fenced({ fenced, generation }: Extract<SecondaryInput, { type: 'fenced' }>): void {
    if (!fenced || this.#role === 'active' || this.#promoteObjection() !== undefined) return
    if (!this.#replicating) return
    this.#takeover.inherit(generation)
    this.#discardPending()
    this.#decide()
  }

  #promoteObjection(): string | undefined {
    if (this.#link !== undefined)
      return `its primary ${this.#link.peer} is connected and alive; stop the primary first, or use force`
    return objectionTo(this.#state)
  }

  /** What was begun to be committed before the promote is part of what it finds, or is known not to be: also of a copy. */
  #decide(): void {
    if (this.#commits.length > 0) return
    this.#tellLoss()
    const objection = this.#takeover.objectionTo(this.#state)
    if (objection !== undefined) return this.#stayPassive(objection)
    const state = this.#takeover.decide(this.#state, this.#term)
    if (state !== undefined) this.#out.add({ type: 'remember', state })
  }

  #becomeActive(): void {
    const { state, promotions, deposing } = this.#takeover.decided()
    this.#state = state
    this.#role = 'active'
    this.#term = state.term
    this.#reason = ALONE
    if (deposing !== undefined)
      this.#refuse(deposing, 'deposed', 'the secondary was promoted and is the active copy')
    this.#out.failCheckpoints(this.#waiters.takeAll(), 'NOT_PERMITTED', 'this side was promoted')
    this.#out.add({ type: 'activate' })
    this.#out.event({
      event: 'REPLICATION_ROLE',
      data: { group: this.#settings.group, role: this.#role, term: this.#term },
    })
    for (const request of promotions) this.#out.add({ type: 'promoted', request })
  }

  #stayPassive(reason: string, remedy = ''): void {
    const { inherited, promotions, deposing } = this.#takeover.forget()
    if (inherited) {
      this.#reason = `this side could not take over: ${reason}${remedy}`
      this.#out.event({
        event: 'REPLICATION_ERROR',
        data: { group: this.#settings.group, error: this.#reason },
      })
    }
    if (deposing !== undefined) this.#out.add({ type: 'close-link', link: deposing, reason })
    for (const request of promotions) this.#out.add({ type: 'promote-refused', request, reason })
  }

  #setReplicating(on: boolean): void {
    this.#replicating = on
    if (on || this.#role === 'active') return
    if (this.#link !== undefined) this.#refuseCurrent('configuration', SWITCHED_OFF_THERE)
    this.#reason = SWITCHED_OFF_THERE
  }

  #refuse(link: number, code: RefusalCode, reason: string): void {
    this.#out.refuse(link, { code, reason, term: this.#term })
  }

  #refuseCurrent(code: RefusalCode, reason: string): void {
    if (this.#link === undefined) return
    this.#refuse(this.#link.number, code, reason)
    this.#linkDown(reason)
  }

  /** Whatever was received since the last marker can never become a checkpoint: its rest is not coming. */
  #linkDown(reason: string): void {
    const peer = this.peer
    const wasProtected = this.#link?.synced === true
    this.#link = undefined
    this.#reason = reason
    this.#news.lost(peer, reason)
    this.#discardPending()
    this.#tellLoss()
    const decides = this.#takeover.isWanted || !this.#replicating
    if (this.#settings.fences && wasProtected && !decides)
      this.#out.add({ type: 'fence', peer: peer ?? '' })
  }

  #tellLoss(): void {
    if (this.#commits.length > 0) return
    const loss = this.#news.takeLoss()
    if (loss === undefined) return
    const reason = `no checkpoint is known to be committed: ${loss.data.reason ?? ''}`
    this.#out.failCheckpoints(this.#waiters.takeAll(), 'LINK_LOST', reason)
    this.#out.event(loss)
  }

  #discardPending(): void {
    this.#epochBytes = 0
    this.#pressure.relieve()
    this.#out.add({ type: 'discard' })
  }
}
