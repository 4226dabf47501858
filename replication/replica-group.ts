/**
 * One side of a replication group: the disks of a VM, and the role that they have together. It begins with what it
 * remembers, and changes its role while the exports stay.
 *
 *     guest ─ ReplicaDisk ─┬─ as a secondary:  SecondaryDisk ─ layers ─ TrackedImage ─ image
 *                          └─ as a primary:    PrimaryDisk ─ ActiveDisk ─ layers ─ TrackedImage ─ image
 *
 * Invariants:
 *  - 10 A role is remembered before anything follows from it; what is remembered wins over the configured role.
 *  - A side is a primary and a secondary at no instant, and one of them at every instant after start().
 *  - 15 Changes are tracked from before a primary's first write until it has become a secondary.
 */

import type { BlockDevice } from '../core/block-device.ts'
import { asFault, Fault } from '../core/fault.ts'
import { Alarms } from './alarms.ts'
import { CheckpointTimes } from './checkpoint-times.ts'
import { Demotion } from './demotion.ts'
import type { Dial, GroupEnvironment, Link, LinkHandlers } from './environment.ts'
import type {
  GroupEvent,
  Recovery,
  CheckpointResult,
  GroupChanges,
  GroupStatus,
  ReplicationGroup,
} from './group.ts'
import { GroupDisks } from './group-disks.ts'
import type { LinkTaker } from './listener.ts'
import type { Hello } from './machine/handshake.ts'
import { FRESH, type ReplicaState } from './machine/replica-state.ts'
import { PrimarySide } from './primary-side.ts'
import { ProtectionClock } from './protection-clock.ts'
import type { ChangedRange } from './regions/region-map.ts'
import { SecondarySide } from './secondary-side.ts'
import { CHECKPOINT_TIMEOUT_MS, type GroupSettings } from './settings.ts'
import { leaveRole } from './switchover.ts'
import { Troubles } from './troubles.ts'

export class ReplicaGroup implements ReplicationGroup, LinkTaker {
  readonly name: string
  readonly #settings: GroupSettings
  readonly #environment: GroupEnvironment
  readonly #dial: Dial | undefined
  readonly #troubles: Troubles
  readonly #alarms: Alarms
  readonly #secondary: SecondarySide
  #primary: PrimarySide | undefined
  readonly #disks: GroupDisks
  readonly #demotion: Demotion
  readonly #times = new CheckpointTimes()
  readonly #clock: ProtectionClock
  #recovery: Recovery | null = null
  #replicating = true
  /** Told after each event, for whoever waits for a state. */
  #changed: (() => void) | undefined
  #closing: Promise<void> | undefined

  /** @param dial how to reach the other side; undefined where it is not known */
  constructor(settings: GroupSettings, environment: GroupEnvironment, dial: Dial | undefined) {
    this.name = settings.group
    this.#settings = settings
    this.#alarms = new Alarms(() => environment.nowMs())
    this.#environment = {
      ...environment,
      onEvent: (event) => {
        this.#alarms.hear(event)
        environment.onEvent(this.#measured(event))
        this.#changed?.()
      },
    }
    this.#clock = new ProtectionClock(environment.nowMs())
    this.#dial = dial
    this.#troubles = new Troubles(settings.group, this.#environment)
    this.#disks = new GroupDisks({
      ...{ settings, environment: this.#environment, troubles: this.#troubles },
      secondary: () => this.#secondary,
      primary: () => this.#primary,
      objection: () => this.#disksObjection(),
      closeGroup: () => this.close(),
    })
    this.#demotion = new Demotion({
      ...{ group: settings.group, environment: this.#environment, troubles: this.#troubles },
      primary: () => this.#primary,
      secondary: () => this.#secondary,
      images: () => this.#disks.members.map(({ image }) => image),
      follow: (state, changed) => this.#demoted(state, changed),
    })
    this.#secondary = new SecondarySide(settings, this.#environment, this.#troubles, {
      regions: this.#disks.regions,
      promoting: () => this.#markLocal(),
      promoted: (state) => this.#promoted(state),
      givenUp: (name) => {
        for (const member of this.#disks.members) if (member.name === name) member.active.giveUp()
      },
    })
  }

  /** Keeps what the status tells of times, and adds to the event what it should tell of them. */
  #measured(event: GroupEvent): GroupEvent {
    const nowMs = this.#environment.nowMs()
    if (event.event === 'REPLICATION_CHECKPOINT') this.#times.add(event.data, nowMs)
    if (event.event !== 'REPLICATION_PROTECTION') return event
    const unprotectedMs = this.#clock.turn(event.data.protection, nowMs)
    if (unprotectedMs === undefined) return event
    this.#recovery = { unprotectedMs, movedBytes: this.#primary?.movedBytes ?? null }
    return { ...event, data: { ...event.data, recovery: this.#recovery } }
  }

  get primary(): PrimarySide | undefined {
    return this.#primary
  }

  /** Whether this side is giving up its role as primary. */
  get demoting(): boolean {
    return this.#demotion.isBegun
  }

  /** Whether it has ended, or is about to. */
  get closed(): boolean {
    return this.#closing !== undefined
  }

  get secondary(): SecondarySide {
    return this.#secondary
  }

  /** A disk of the group: at once before start(), else with admit(). */
  attach(name: string, below: BlockDevice): BlockDevice {
    return this.#disks.attach(name, below)
  }

  /** The disks that were attached since the start are the group's from now on. @throws Fault, and then they are not */
  admit(): Promise<void> {
    return this.#disks.admit()
  }

  /** @throws Fault when no disk can leave the group now */
  refuseDismissal(name: string): Promise<void> {
    return this.#disks.refuseDismissal(name)
  }

  /** A disk is about to be closed while the group runs on. @throws Fault, with all as it was */
  dismiss(name: string): Promise<void> {
    return this.#disks.dismiss(name)
  }

  has(name: string): boolean {
    return this.#disks.members.some((member) => member.name === name)
  }

  get size(): number {
    return this.#disks.members.length
  }

  /** Begins with what is remembered. @throws Fault when that cannot be read */
  async start(): Promise<void> {
    const remembered = await this.#secondary.recover()
    const known = remembered.generation !== null
    await this.#disks.begin(!known)
    if (known) this.#announceRole(remembered)
    const role = known ? remembered.role : this.#settings.role
    if (role === 'secondary') {
      this.#follow(remembered)
      return
    }
    const state = known ? remembered : this.#firstLine()
    // From now on what is announced is not remembered any more until the end in order.
    await this.#secondary.log.persist({ ...state, announced: null })
    this.#serve(state, known)
  }

  status(): GroupStatus {
    const { group, mode } = this.#settings
    const side =
      this.#primary === undefined
        ? this.#secondary.status()
        : { ...this.#primary.machine.status, disks: this.#primary.diskStatus() }
    return {
      group,
      mode,
      ...side,
      ack: this.#primary?.machine.ack ?? this.#settings.ack,
      checkpoints: this.#times.statistics(this.#environment.nowMs()),
      resync: this.#primary?.progress ?? null,
      recovery: this.#recovery,
      verify: this.#primary?.verification ?? null,
      ramdiskBytes: this.#secondary.memory.bytesInUse,
      spilledBytes: this.#secondary.reception.spilledBytes,
      journalBytes: this.#secondary.log.bytes,
      leaving: this.#primary?.isLeaving ?? false,
      error: this.#troubles.first,
      alarms: this.#alarms.list(),
    }
  }

  acknowledge(): GroupStatus {
    this.#alarms.acknowledge()
    return this.status()
  }

  checkpoint(timeoutMs = CHECKPOINT_TIMEOUT_MS): Promise<CheckpointResult> {
    return (this.#primary ?? this.#secondary).checkpoint(timeoutMs)
  }

  async promote(force: boolean): Promise<GroupStatus> {
    await this.#demotion.underWay
    if (this.#demotion.isBegun) this.#primary?.assertStays()
    if (this.#primary?.machine.role === 'primary')
      throw new Fault(
        'NOT_PERMITTED',
        'only a secondary can be promoted; this side is the primary',
        {
          where: `group ${this.name}`,
          remedy: 'run it on the secondary',
        },
      )
    if (this.#primary === undefined) await this.#secondary.promote(force)
    return this.status()
  }

  async demote(force: boolean): Promise<GroupStatus> {
    const primary = this.#primary
    if (primary === undefined) return this.status()
    if (!force && primary.machine.protection === 'protected')
      throw new Fault('NOT_PERMITTED', 'a secondary follows this primary', {
        where: `group ${this.name}`,
        remedy: 'use switchover to exchange the roles, or force to go on with none active',
      })
    await this.#demotion.begin('an operator has demoted this side')
    return this.status()
  }

  async switchover(timeoutMs = CHECKPOINT_TIMEOUT_MS): Promise<GroupStatus> {
    await this.#disks.grown(timeoutMs)
    await leaveRole({
      ...{ group: this.name, primary: this.#primary, listens: this.#settings.listens, timeoutMs },
      stepDown: (reason, decided) => this.#demotion.begin(reason, decided),
    })
    await this.#followed(timeoutMs)
    return this.status()
  }

  /** Resolves when this side is the secondary of a primary. @throws Fault TIMEOUT */
  #followed(timeoutMs: number): Promise<void> {
    return new Promise((resolve, reject) => {
      const cancel = this.#environment.timers.after(timeoutMs, () => {
        this.#changed = undefined
        reject(
          new Fault('TIMEOUT', 'both sides are secondaries: the other one has not come back', {
            where: `group ${this.name}`,
            remedy: 'see that it knows peer=; if it is a secondary too, promote this side',
          }),
        )
      })
      this.#changed = () => {
        if (this.#primary !== undefined || this.status().protection !== 'protected') return
        this.#changed = undefined
        cancel()
        resolve()
      }
      this.#changed()
    })
  }

  async resolveSplit(discard: 'local' | 'remote'): Promise<GroupStatus> {
    if (discard === 'local' && this.#primary !== undefined)
      await this.#demotion.begin('an operator has given up the changes of this side')
    if (this.#primary === undefined) this.#secondary.discard(discard)
    else this.#primary.discard(discard)
    return this.status()
  }

  configure(changes: GroupChanges): GroupStatus {
    this.#asPrimary().configure(changes)
    return this.status()
  }

  async resync(checksums: boolean): Promise<GroupStatus> {
    const primary = this.#asPrimary()
    if (this.#settings.wire === 'blktap2')
      throw new Fault('NOT_PERMITTED', 'the blktap2 wire cannot carry a copy', {
        where: `group ${this.name}`,
        remedy: 'make the images equal, and start both sides anew',
      })
    const { peer, peerCompares } = primary.machine
    if (checksums && peer !== null && !peerCompares)
      throw new Fault('NOT_SUPPORTED', 'the secondary is too old to compare what it has', {
        where: `group ${this.name}`,
        remedy: 'update it, or copy without checksums',
      })
    await primary.copyAgain(checksums)
    return this.status()
  }

  verify(wish: 'compare' | 'repair' | 'cancel'): GroupStatus {
    this.#asPrimary().verify(wish)
    return this.status()
  }

  #asPrimary(): PrimarySide {
    if (this.#primary !== undefined) return this.#primary
    throw new Fault('NOT_PERMITTED', 'this side is a secondary', {
      where: `group ${this.name}`,
      remedy: 'run it on the primary',
    })
  }

  setReplicating(on: boolean): void {
    if (!on) this.#primary?.assertStays()
    this.#replicating = on
    this.#primary?.setReplicating(on)
    if (this.#primary === undefined) this.#secondary.setReplicating(on)
  }

  take(link: Link, hello: Hello): LinkHandlers {
    return this.#primary?.take(link, hello) ?? this.#secondary.take(link, hello)
  }

  /** The server is being shut down: what waits is refused, and so are commands. */
  stop(): void {
    this.#secondary.stop()
  }

  close(): Promise<void> {
    this.#closing ??= this.#close()
    return this.#closing
  }

  async #close(): Promise<void> {
    await this.#demotion.close()
    if (this.#primary !== undefined) await this.#endPrimary(this.#primary)
    try {
      await this.#secondary.close()
    } finally {
      await this.#disks.closeRegions()
    }
  }

  /** What a primary knows exactly, the next process knows as well. */
  async #endPrimary(primary: PrimarySide): Promise<void> {
    await primary.end(new Fault('SHUTDOWN', 'the primary is shutting down', { where: this.name }))
    try {
      await primary.retention.settle()
      await this.#secondary.log.persist(primary.machine.state(true))
    } catch (error) {
      // What is remembered says too much then, as after a crash.
      const { message } = asFault(error, 'IO', 'cannot remember what has changed')
      this.#troubles.report('regions', message)
    }
  }

  /** Why the disks cannot be changed now. */
  #disksObjection(): string | undefined {
    if (this.#closing !== undefined) return 'the group is being closed'
    if (this.demoting) return 'this side is being demoted'
    if (this.#primary?.isLeaving === true) return 'this side is leaving its role'
    if (this.#primary === undefined && this.#secondary.isTakingOver)
      return 'this side is being promoted'
    return this.#secondary.log.isFailing ? 'the journal cannot be written' : undefined
  }

  #firstLine(): ReplicaState {
    const generation = this.#environment.newId()
    return { ...FRESH, role: 'primary', generation, wrote: true, announced: 0 }
  }

  #announceRole({ role, term, checkpoint }: ReplicaState): void {
    const configured = this.#settings.role
    if (configured === (role === 'active' ? 'primary' : role)) return
    this.#environment.logger.warn(
      { group: this.name, configured, role, term, checkpoint },
      `this side is ${role === 'secondary' ? 'a secondary' : 'the active copy'}, as it was when it was stopped, whatever its configured role`,
    )
  }

  /** A primary begins, after a start. */
  #serve(state: ReplicaState, shared: boolean): void {
    this.#secondary.activate()
    const changed = this.#disks.regions.map((regions) => regions.ranges())
    this.#become(state, shared, changed)
  }

  /** 15: what the guest here has changed goes into the image with the promote. */
  #markLocal(): Promise<void> | undefined {
    if (!this.#secondary.log.durable) return undefined
    return this.#disks.markRanges(
      this.#disks.members.map(({ passive }) => [...passive.layers.localRanges()]),
    )
  }

  #promoted(state: ReplicaState): void {
    this.#secondary.end('this side was promoted')
    const changed = this.#disks.members.map(({ passive }, index) => [
      ...passive.layers.localRanges(),
      ...(this.#disks.regions[index]?.ranges() ?? []),
    ])
    this.#become(state, false, changed, () => this.#secondary.activate())
  }

  /** From the instant of this call the disks are a primary's. */
  #become(
    remembered: ReplicaState,
    shared: boolean,
    changed: readonly (readonly ChangedRange[])[],
    activate?: () => void,
  ): void {
    this.#disks.track(true)
    activate?.()
    const primary = new PrimarySide({
      settings: this.#settings,
      environment: this.#environment,
      replica: this.#secondary.replica,
      dial: this.#dial,
      troubles: this.#troubles,
      ...{ remembered, shared },
      disks: this.#disks.tracked(changed),
      persist: (state) => this.#secondary.log.persist(state),
      stepDown: (reason) => this.#demotion.start(reason),
    })
    this.#primary = primary
    this.#disks.serve(primary, remembered.apart)
    if (!this.#replicating) primary.setReplicating(false)
    primary.start()
  }

  #follow(state: ReplicaState, changed?: readonly (readonly ChangedRange[])[]): void {
    this.#secondary.follow(state, changed)
    if (!this.#replicating) this.#secondary.setReplicating(false)
  }

  /** From the instant of this call the disks are a secondary's. */
  #demoted(state: ReplicaState, changed: readonly (readonly ChangedRange[])[]): void {
    this.#disks.track(false)
    for (const { disk, passive } of this.#disks.members) disk.use(passive)
    this.#primary = undefined
    this.#secondary.log.follow()
    this.#follow(state, changed)
    // What kept a primary from its work, or from giving it up, is past: the images and the log have taken everything.
    for (const what of ['role', 'disk', 'journal']) this.#troubles.over(what)
    this.#environment.onEvent({
      event: 'REPLICATION_ROLE',
      data: { group: this.name, role: 'secondary', term: state.term },
    })
  }
}
