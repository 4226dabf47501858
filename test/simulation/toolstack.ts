/** Who commands both sides, and who breaks things: checkpoints, promotes, switches; cuts, silence, failing images. */

import { strict as expect } from 'node:assert'

import type { VerifyReport } from '../../replication/group.ts'
import type { VirtualImage } from './image.ts'
import { DiskChanges } from './disk-changes.ts'
import type { Oracle } from './oracle.ts'
import type { FaultKind } from './plan.ts'
import type { Life } from './scheduler.ts'
import { TIMEOUT_MS, type Side, type World } from './world.ts'

/** Commands that come in a hurry, and how much more time passes between those after them. */
const BURST = 20
const CALM = 8

export class Toolstack {
  readonly #world: World
  readonly #oracle: Oracle
  /** Commands that were not answered yet; those to a process that is gone never are. */
  readonly #outstanding = new Set<{ readonly life: Life }>()
  #commanding = false
  #commands = 0
  #breaking = false

  readonly disks: DiskChanges

  constructor(world: World, oracle: Oracle) {
    this.#world = world
    this.#oracle = oracle
    this.disks = new DiskChanges({
      world,
      failed: (what, error) => oracle.commandFailed(what, error),
      left: (side, slot, began) => oracle.diskLeft(side, slot, began),
    })
  }

  start(): void {
    this.#commanding = true
    this.#commands = 0
    this.#breaking = true
    this.#commandLater()
    if (this.#world.plan.faults.length > 0) this.#breakLater()
    this.disks.start()
  }

  /** Both sides get the disks that they lack, and checkpoints are taken until they have them all. @returns whether they do */
  async complete(): Promise<boolean> {
    const { scheduler } = this.#world
    for (let tries = 0; tries < 100 && !this.disks.isWhole; tries += 1) {
      this.disks.restoreNow()
      await scheduler.run(200)
      await this.checkpoint()
    }
    return this.disks.isWhole
  }

  stopFaults(): void {
    this.#breaking = false
    for (const side of [this.#world.primary, this.#world.secondary])
      if (!side.life.alive) this.#restart(side)
  }

  /** No command is given any more, and each that was is answered. */
  async stop(): Promise<void> {
    this.#commanding = false
    this.disks.stop()
    const answered = await this.#world.scheduler.run(
      40_000,
      () => this.disks.isIdle && [...this.#outstanding].every(({ life }) => !life.alive),
    )
    expect(answered, '21: every command is answered')
  }

  /** Ends every fault. */
  heal(): void {
    const { network, primary, secondary } = this.#world
    this.#breaking = false
    network.partitioned = false
    network.speak()
    for (const { images } of [primary, secondary]) this.#restore(images)
    this.#switchOn(primary)
    this.#switchOn(secondary)
    this.healJournal()
    this.disks.restore()
  }

  /** Lets every disk work again. */
  healDisks(): void {
    for (const { images } of [this.#world.primary, this.#world.secondary]) this.#restore(images)
    this.healJournal()
  }

  /** Lets the journal's disk work again. */
  healJournal(): void {
    for (const { conduct } of Object.values(this.#world.journals))
      Object.assign(conduct, { failures: 0, slowestMs: 1 })
  }

  /** @returns whether a checkpoint of the primary was taken */
  async checkpoint(): Promise<boolean> {
    const { scheduler, primary } = this.#world
    let taken: boolean | undefined
    primary.group.checkpoint(undefined).then(
      ({ checkpoint }) => {
        taken = true
        this.#oracle.reported(checkpoint)
      },
      (error: unknown) => {
        taken = false
        this.#oracle.commandFailed('last checkpoint', error)
      },
    )
    await scheduler.run(40_000, () => taken !== undefined)
    expect(taken !== undefined, '21: a checkpoint is answered')
    return taken
  }

  /** Compares both sides to the end. @returns what that has found */
  async verify(wish: 'compare' | 'repair'): Promise<VerifyReport> {
    const { scheduler, primary } = this.#world
    // A whole status costs more, after each event.
    const report = (): VerifyReport | null => primary.group.primary?.verification ?? null
    primary.group.verify(wish)
    await scheduler.run(40_000, () => report()?.state !== 'running')
    const ended = report()
    expect(ended !== null && ended.state !== 'running', '21: a verify ends')
    return ended
  }

  /** @returns whether the roles are exchanged */
  async switchover(): Promise<boolean> {
    const { primary, scheduler } = this.#world
    let done: boolean | undefined
    primary.group.switchover(undefined).then(
      () => (done = true),
      (error: unknown) => {
        done = false
        this.#oracle.commandFailed('switchover', error)
      },
    )
    await scheduler.run(70_000, () => done !== undefined)
    expect(done !== undefined, '21: a switchover is answered')
    return done
  }

  /** @returns whether the secondary is active then */
  async promote(force: boolean): Promise<boolean> {
    const { secondary, scheduler } = this.#world
    let promoted: boolean | undefined
    secondary.group.promote(force).then(
      () => (promoted = true),
      (error: unknown) => {
        promoted = false
        this.#oracle.commandFailed('promote', error)
      },
    )
    // At once, or when the journal has it.
    await scheduler.run(10_000, () => promoted !== undefined)
    expect(promoted !== undefined, '21: a promote is answered')
    return promoted
  }

  /** Whether the secondary holds a state of its disks. */
  get mayPromote(): boolean {
    const { consistent, generation } = this.#world.secondary.group.secondary.machine.state
    return consistent && generation !== null
  }

  /**
   * Whether that is so whatever part of a copy is on its way. Force serves a mixture as it is; no oracle can say what is
   * in it, so no story uses force on one.
   */
  get mayForce(): boolean {
    return this.mayPromote && !this.#oracle.isCopying
  }

  /**
   * Promotes the secondary as operators do: again and again, until it is active.
   * @returns false where a part of a copy arrived before that: then it has to be refused
   */
  async failOver(force: boolean): Promise<boolean> {
    const { scheduler, secondary, network, primary } = this.#world
    let promoted = await this.promote(force)
    // Until the silence of a dead primary has been noticed, it is taken for alive.
    const latestMs = scheduler.nowMs + 3 * TIMEOUT_MS
    while (!promoted && this.mayPromote && scheduler.nowMs < latestMs) {
      // A promote that cannot be recorded is refused.
      this.healJournal()
      await scheduler.run(20)
      promoted = await this.promote(force)
    }
    // A link that is not read for want of memory tells nothing of a peer's death; the operator knows of it.
    const starves = network.isUnread(secondary.life) || !primary.life.alive
    if (!promoted && starves && this.mayForce) promoted = await this.promote(true)
    const mayRefuse = !this.mayPromote || (starves && !this.mayForce)
    expect(promoted || mayRefuse, `8, 9: a promote works: ${secondary.group.status().reason}`)
    return promoted
  }

  #commandLater(): void {
    const { scheduler, random, plan, nobody } = this.#world
    const longestMs = this.#commands < BURST ? plan.checkpointMs : CALM * plan.checkpointMs
    scheduler.after(random.delay(0, longestMs), nobody, 'toolstack', () => {
      if (!this.#commanding) return
      this.#commands += 1
      this.#command()
      this.#commandLater()
    })
  }

  #command(): void {
    const { random, primary, secondary } = this.#world
    if (random.chance(0.04)) return this.#rarely()
    const side = random.chance(0.8) ? primary : secondary
    if (!side.life.alive) return
    if (random.chance(0.2)) return this.#compare(side)
    const many = random.chance(0.2) ? random.whole(2, 4) : 1
    for (let count = 0; count < many; count += 1) {
      const command = { life: side.life }
      this.#outstanding.add(command)
      side.group
        .checkpoint(random.chance(0.2) ? random.whole(0, 30) : undefined)
        .then(
          ({ checkpoint }) => this.#oracle.reported(checkpoint),
          (error: unknown) => this.#oracle.commandFailed('checkpoint', error),
        )
        .finally(() => this.#outstanding.delete(command))
        .catch((error: unknown) => this.#world.scheduler.fail(error))
    }
  }

  /** Both sides are compared beside everything else that happens, or copied by what differs. */
  #compare({ group }: Side): void {
    const { random } = this.#world
    if (random.chance(0.1)) {
      group
        .resync(random.chance(0.7))
        .catch((error: unknown) => this.#oracle.commandFailed('resync', error))
      return
    }
    try {
      group.verify(random.pick(['compare', 'compare', 'repair', 'cancel']))
    } catch (error) {
      this.#oracle.commandFailed('verify', error)
    }
  }

  /** What operators do now and then to a primary that runs. */
  #rarely(): void {
    const { random, primary, plan } = this.#world
    if (!primary.life.alive || primary.group.primary === undefined) return
    primary.group.configure({
      ack: undefined,
      onLinkLoss: random.pick([plan.onLinkLoss, 'continue']),
      intervalMs: random.pick([plan.intervalMs, 0, 30]),
      resyncRate: random.pick([undefined, 0, 100_000]),
    })
  }

  #breakLater(): void {
    const { scheduler, random, plan, nobody } = this.#world
    scheduler.after(random.delay(0, plan.faultMs), nobody, 'fault', () => {
      if (!this.#breaking) return
      this.#break(random.pick(plan.faults))
      this.#breakLater()
    })
  }

  #break(fault: FaultKind): void {
    const { network, primary, secondary, scheduler } = this.#world
    scheduler.note(`FAULT ${fault}`)
    switch (fault) {
      case 'cut':
        return network.cut()
      case 'silence':
        network.silence()
        return this.#later(1000, () => network.speak())
      case 'partition':
        network.partitioned = true
        if (this.#world.random.chance(0.5)) network.cut()
        else network.silence()
        return this.#later(800, () => {
          network.partitioned = false
          network.speak()
        })
      case 'primary-image':
        return this.#failing(primary.images)
      case 'secondary-image':
        return this.#failing(secondary.images)
      case 'slow-primary':
        return this.#slow(primary.images)
      case 'slow-secondary':
        return this.#slow(secondary.images)
      case 'journal':
        Object.assign(this.#world.journals[this.#world.random.pick(['A', 'B'] as const)].conduct, {
          failures: this.#world.random.pick([0, 0.1, 0.5, 1]),
          slowestMs: this.#world.random.pick([1, 30]),
        })
        return this.#later(400, () => this.healJournal())
      case 'crash-primary':
        return this.#crash(primary)
      case 'crash-secondary':
        return this.#crash(secondary)
      case 'switch-primary':
        return this.#switchOff(primary)
      case 'switch-secondary':
        return this.#switchOff(secondary)
    }
  }

  #switchOff(side: Side): void {
    try {
      side.group.setReplicating(false)
    } catch (error) {
      // It is leaving its role.
      return this.#oracle.commandFailed('switch off', error)
    }
    this.#oracle.switchedOff.add(side.life)
    this.#later(600, () => this.#switchOn(side))
  }

  #switchOn(side: Side): void {
    if (!side.life.alive) return
    this.#oracle.switchedOff.delete(side.life)
    side.group.setReplicating(true)
  }

  /** A process dies, and the power of its host with it; another one follows. */
  #crash(side: Side): void {
    const { random } = this.#world
    // What lives in memory alone ends with it, and the story with that.
    if (!side.life.alive || this.#world.plan.durability === 'memory') return
    this.#world.crash(side, random.chance(0.5))
    this.#later(300, () => this.#restart(side))
  }

  #restart(side: Side): void {
    const { plan, primary } = this.#world
    this.#world.restart(side)
    if (side === primary) this.#world.primary.depth = plan.primaryDepth
    else this.#world.secondary.depth = plan.secondaryDepth
  }

  /** Ends a fault, unless the faults as a whole have ended before. */
  #later(ms: number, end: () => void): void {
    const { scheduler, random, nobody } = this.#world
    scheduler.after(random.delay(0, ms), nobody, 'fault ends', () => {
      if (this.#breaking) end()
    })
  }

  #failing(images: readonly VirtualImage[]): void {
    const { random } = this.#world
    const share = random.pick([0.02, 0.2, 1])
    for (const { conduct } of images)
      conduct.failures = {
        read: share,
        write: random.pick([0, share]),
        flush: random.pick([0, share]),
      }
    this.#later(500, () => this.#restore(images))
  }

  #slow(images: readonly VirtualImage[]): void {
    const side = this.#sideOf(images)
    for (const { conduct } of images) conduct.slowestMs = 10 * this.#world.conductOf(side).slowestMs
    this.#later(300, () => this.#restore(images))
  }

  #restore(images: readonly VirtualImage[]): void {
    const usual = this.#world.conductOf(this.#sideOf(images))
    for (const { conduct } of images) Object.assign(conduct, usual)
  }

  #sideOf(images: readonly VirtualImage[]): 'primary' | 'secondary' {
    return images === this.#world.primary.images ? 'primary' : 'secondary'
  }
}
