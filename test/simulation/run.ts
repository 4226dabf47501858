/** One simulated run from its seed: start, chaos, and an ending after which everything must be right again. */

import { strict as expect } from 'node:assert'

import { outstandingOf, reasonsOf } from './accounts.ts'
import { alive } from './alive.ts'
import { isProtected, Oracle } from './oracle.ts'
import { SECTOR } from '../../core/units.ts'
import { Operator, awaitsDemotion } from './operator.ts'
import { planOf, type Plan } from './plan.ts'
import { Toolstack } from './toolstack.ts'
import { TIMEOUT_MS, World } from './world.ts'

/** Virtual milliseconds in which a pair without faults must have recovered: back-offs and retries included. */
const RECOVERY_MS = 60_000

export interface Summary {
  readonly plan: Plan
  readonly events: number
  readonly commits: number
  readonly overflows: number
  readonly acknowledged: number
  /** Equal for runs that went the same way. */
  readonly digest: number
  /** Comparisons of all that both sides hold. */
  readonly verifies: number
}

/** @throws what went wrong; the same seed always goes the same way */
export async function simulate(seed: number, trace?: (line: string) => void): Promise<Summary> {
  const plan = planOf(seed)
  const oracle = new Oracle(plan)
  const world = new World(plan, oracle)
  world.scheduler.trace = trace
  const unhandled = (error: unknown): void => world.scheduler.fail(error)
  process.on('unhandledRejection', unhandled)
  try {
    oracle.watch(world)
    await alive(new Run(world, oracle).all(), world.scheduler)
    return {
      plan,
      events: world.scheduler.count,
      commits: oracle.commits,
      overflows: oracle.overflows,
      acknowledged: world.primary.guest.acknowledged,
      digest: world.scheduler.digest,
      verifies: oracle.verifies,
    }
  } finally {
    process.off('unhandledRejection', unhandled)
  }
}

class Run {
  readonly #world: World
  readonly #oracle: Oracle
  readonly #toolstack: Toolstack
  readonly #operator: Operator

  constructor(world: World, oracle: Oracle) {
    this.#world = world
    this.#oracle = oracle
    this.#toolstack = new Toolstack(world, oracle)
    this.#operator = new Operator(world, oracle)
  }

  async all(): Promise<void> {
    const { plan, primary, scheduler } = this.#world
    const started = (): boolean => primary.started && this.#world.secondary.started
    expect(await this.#run(started), 'both sides start')
    primary.guest.start(plan.primaryDepth)
    this.#world.secondary.guest.start(plan.secondaryDepth)
    this.#toolstack.start()
    await scheduler.run(plan.chaosMs)
    await this.#stopFaults()
    if (plan.lullMs > 0) await this.#lull()
    await this.#end()
  }

  /** Both sides are there again, if not well. */
  async #stopFaults(): Promise<void> {
    this.#toolstack.stopFaults()
    const isThere = (): boolean => this.#world.primary.started && this.#world.secondary.started
    if (isThere()) return
    this.#toolstack.healDisks()
    expect(await this.#run(isThere), '21: a side recovers')
  }

  /** 15: what is clean is taken out of the maps of changed regions meanwhile. */
  async #lull(): Promise<void> {
    const { scheduler, plan, random } = this.#world
    this.#toolstack.heal()
    this.#world.primary.guest.stop()
    this.#world.secondary.guest.stop()
    await scheduler.run(plan.lullMs)
    this.#world.primary.guest.start(plan.primaryDepth)
    this.#world.secondary.guest.start(plan.secondaryDepth)
    this.#toolstack.start()
    await scheduler.run(random.whole(0, plan.chaosMs))
    await this.#stopFaults()
  }

  #end(): Promise<void> {
    const { plan } = this.#world
    switch (plan.ending) {
      case 'heal':
        return this.#heal()
      case 'primary-crash':
        return this.#promoteAfterCrash()
      case 'primary-restart':
        return this.#restartPrimary()
      case 'secondary-restart':
        return this.#recoverSecondary()
      case 'promote':
        return this.#promoteAlive()
      case 'active-restart':
        return this.#restartActive()
      case 'failback':
        return this.#failBack()
      case 'switchover':
        return this.#switchOver()
    }
  }

  /** 12, 21: protected again, every request answered, both sides equal. */
  async #heal(): Promise<void> {
    const { primary, secondary, random, plan, scheduler } = this.#world
    this.#toolstack.heal()
    // A link may be dead already without anybody having noticed.
    await scheduler.run(2 * TIMEOUT_MS)
    await this.#run(() => this.#toolstack.disks.isRestored)
    // A crash forgets what an operator has chosen.
    await this.#operator.resolveSplit()
    if (random.chance(0.5)) this.#stopGuests()
    const isWell = (): boolean => isProtected(primary) && isProtected(secondary)
    // Changes of a guest that used the old primary are given up by nobody but an operator.
    const ended = await this.#run(() => isWell() || awaitsDemotion(secondary))
    if (awaitsDemotion(secondary)) await this.#operator.demote(secondary)
    const protectedAgain = ended && (await this.#run(isWell))
    if (!protectedAgain && this.#mayOverflow()) return
    expect(protectedAgain, `21: protected again: ${reasonsOf([primary.group, secondary.group])}`)
    this.#stopGuests()
    const quiet = await this.#run(() => outstandingOf(this.#world).length === 0 && isWell())
    if (!quiet && this.#mayOverflow()) return
    expect(quiet, `21: every request is answered; not: ${outstandingOf(this.#world).join(', ')}`)
    await this.#toolstack.stop()
    // What was still under way may have been too much for a small memory: then once more.
    let taken = false
    for (let tries = 0; tries < 4 && !taken; tries += 1) {
      taken = (await this.#run(isWell)) && (await this.#toolstack.checkpoint())
    }
    const whole = taken && (await this.#toolstack.complete())
    taken = whole && (await this.#run(isWell)) && (await this.#toolstack.checkpoint())
    if (!taken && this.#mayOverflow()) return
    expect(taken, `12: a pair that is well takes a checkpoint: ${reasonsOf([primary.group])}`)
    primary.guest.readAll()
    if (plan.mode === 'colo') secondary.guest.readAll()
    await this.#drainSecondary()
    this.#oracle.checkEqual()
    expect.equal(primary.group.status().checkpoint, secondary.group.status().checkpoint)
    if (random.chance(0.3)) await this.#verify()
  }

  /** What differs without anybody's having noticed is found, and nothing else; and it is repaired where that is wanted. */
  async #verify(): Promise<void> {
    const { primary, secondary, random } = this.#world
    // A request that was made to fail may still have been under way.
    let { state: before } = await this.#toolstack.verify('compare')
    for (let tries = 0; before === 'unfinished' && tries < 5; tries += 1)
      before = (await this.#toolstack.verify('compare')).state
    expect.equal(before, 'equal')
    const { error } = primary.group.status()
    const disk = random.whole(0, secondary.images.length - 1)
    const image = secondary.images[disk]!
    const sector = random.whole(0, secondary.slots.size(disk) / SECTOR - 1)
    this.#oracle.corrupted = true
    image.corrupt(sector)
    const { state, ranges, differentBytes } = await this.#toolstack.verify('repair')
    expect.equal(state, 'different', 'a sector that differs is found')
    const [found] = ranges
    expect(found !== undefined && ranges.length === 1 && found.disk === `disk${disk}`)
    expect(found.at <= sector * SECTOR && sector * SECTOR < found.at + found.length)
    expect.equal(differentBytes, found.length)
    const repaired = await this.#run(() => isProtected(primary) && isProtected(secondary))
    expect(repaired, 'protected again once what differs is sent')
    expect(await this.#toolstack.checkpoint(), 'and a checkpoint is taken')
    await this.#drainSecondary()
    this.#oracle.corrupted = false
    this.#oracle.checkEqual()
    expect.equal((await this.#toolstack.verify('compare')).state, 'equal')
    const { error: after } = primary.group.status()
    // What was wrong before may be over by now as well.
    expect(after === error || after === null, `what was found is over: ${after}`)
  }

  async #promoteAfterCrash(): Promise<void> {
    const { primary, random } = this.#world
    this.#world.crash(primary, random.chance(0.5))
    if (random.chance(0.5)) this.#toolstack.heal()
    if (await this.#promoteIfWhole()) await this.#serveAlone()
  }

  /** 8, 9, 11, 13, 15, 18: after a failover the old primary rejoins as the secondary, and the pair is as before. */
  async #failBack(): Promise<void> {
    const { primary, secondary, random, scheduler, plan } = this.#world
    if (!secondary.group.status().durable && !secondary.met) return this.#heal()
    this.#world.crash(primary, random.chance(0.5))
    if (random.chance(0.5)) this.#toolstack.heal()
    if (!(await this.#promoteIfWhole())) return
    await this.#exchange()
    this.#world.restart(primary)
    await scheduler.run(random.whole(0, 300))
    if (random.chance(0.3)) await this.#restart()
    this.#toolstack.heal()
    await this.#run(() => this.#toolstack.disks.isRestored)
    await this.#operator.resolveSplit()
    if (random.chance(0.5)) this.#toolstack.start()
    await scheduler.run(random.whole(0, plan.chaosMs))
    await this.#stopFaults()
    await this.#heal()
  }

  /** 5, 13: a planned exchange of the roles loses nothing, and can be repeated. */
  async #switchOver(): Promise<void> {
    const { random, scheduler, plan } = this.#world
    this.#toolstack.heal()
    await scheduler.run(2 * TIMEOUT_MS)
    for (let times = random.whole(1, 3); times > 0; times -= 1) {
      const { primary, secondary } = this.#world
      await this.#run(() => isProtected(primary) && isProtected(secondary))
      if (random.chance(0.5)) primary.guest.stop()
      secondary.guest.stop()
      this.#oracle.switching = true
      const done = await this.#toolstack.switchover()
      this.#oracle.switching = false
      if (done) secondary.guest.start(plan.primaryDepth)
      await scheduler.run(random.whole(0, 300))
    }
    await this.#heal()
  }

  /** Both sides live: the one that was promoted must depose the other as soon as they can talk. */
  async #promoteAlive(): Promise<void> {
    const { random, network, primary, scheduler } = this.#world
    const force = random.chance(0.5)
    const hasSteppedDown = (): boolean => primary.group.primary === undefined
    if (!force) {
      network.partitioned = true
      if (random.chance(0.5)) network.cut()
      else network.silence()
    }
    const { mayPromote, mayForce } = this.#toolstack
    if (!(force ? mayForce : mayPromote)) return this.#heal()
    if (!(await this.#toolstack.failOver(force))) return this.#heal()
    this.#oracle.forbidden = { side: 'secondary', why: 'it was promoted' }
    if (await scheduler.run(random.whole(0, 300), hasSteppedDown)) return this.#follow()
    this.#toolstack.heal()
    const isDeposed = (): boolean => primary.group.primary?.machine.writeObjection !== undefined
    const deposed = await this.#run(() => isDeposed() || hasSteppedDown())
    expect(deposed, `13: the old primary is deposed: ${primary.group.status().reason}`)
    // Nobody used this process: it follows by itself, when it has remembered that. A disk that fails holds it up for longer than it fails.
    const { demoting } = primary.group
    if (await scheduler.run(500, hasSteppedDown)) return this.#follow()
    const { acknowledged } = primary.guest
    const refuses = await this.#run(() => hasSteppedDown() || primary.guest.notPermitted > 0)
    expect(refuses, '13: a deposed primary refuses writes')
    if (hasSteppedDown() || (await scheduler.run(100, hasSteppedDown))) return this.#follow()
    const followed = !demoting || (await this.#run(hasSteppedDown))
    expect(followed, '21: a deposed primary that nobody has used becomes a secondary')
    expect.equal(primary.guest.acknowledged, acknowledged, '13: a deposed primary acks no write')
    if (hasSteppedDown()) return this.#follow()
    await this.#serveAlone()
  }

  /** 12, 13, 21: a deposed primary that has just become a secondary gets the state of the promoted side. */
  async #follow(): Promise<void> {
    this.#world.primary.guest.stop()
    await this.#exchange()
    await this.#stopFaults()
    await this.#heal()
  }

  /**
   * The secondary was promoted, and the primary is gone or has stepped down just now. From this event on the judges have to
   * take the promoted side for the primary: it may send its first checkpoint a moment later, which is what the other one must have.
   */
  async #exchange(): Promise<void> {
    const { secondary, random, scheduler, plan } = this.#world
    this.#world.exchangeRoles()
    this.#oracle.exchanged()
    secondary.guest.stop()
    if (random.chance(0.7)) secondary.guest.start(plan.primaryDepth)
    await scheduler.run(random.whole(0, 300))
  }

  /** @returns false where the secondary is in the middle of a copy, or was never copied, and refuses for that reason */
  async #promoteIfWhole(): Promise<boolean> {
    if (this.#toolstack.mayPromote) return this.#toolstack.failOver(false)
    expect(!(await this.#toolstack.promote(false)), '17: a mixture is not promoted')
    return false
  }

  /** The promoted side serves its guest; in the end its image holds everything. */
  async #serveAlone(): Promise<void> {
    const { secondary, scheduler, random } = this.#world
    const { term, checkpoint } = secondary.group.status()
    secondary.guest.start(3)
    await scheduler.run(random.whole(0, 200))
    expect(await this.#toolstack.promote(random.chance(0.5)), '22: a promote can be repeated')
    const status = secondary.group.status()
    expect.deepEqual([status.term, status.checkpoint, status.role], [term, checkpoint, 'active'])
    this.#toolstack.heal()
    this.#stopGuests()
    expect(
      await this.#run(() => secondary.guest.outstanding.size === 0),
      '21: every request is answered',
    )
    await this.#toolstack.stop()
    await this.#drainSecondary()
    this.#oracle.checkImages()
  }

  /** 15, 16, 21: what a primary had not shared when it crashed is sent when it is back. */
  async #restartPrimary(): Promise<void> {
    const { random, scheduler, plan } = this.#world
    for (let crashes = random.whole(1, 3); crashes > 0; crashes -= 1) {
      const { primary } = this.#world
      this.#world.crash(primary, random.chance(0.5))
      await scheduler.run(random.whole(0, 500))
      this.#world.restart(primary)
      if (plan.durability === 'memory') this.#oracle.parted()
      if (random.chance(0.7)) this.#world.primary.depth = plan.primaryDepth
      await scheduler.run(random.pick([0, 2, 300]))
    }
    this.#toolstack.healJournal()
    expect(await this.#run(() => this.#world.primary.started), '21: a primary recovers')
    // What lived in memory is gone: an operator says which side counts.
    if (plan.durability === 'memory') await this.#operator.choose(this.#world.primary, 'remote')
    if (random.chance(0.5)) this.#toolstack.start()
    await scheduler.run(random.whole(0, plan.chaosMs))
    await this.#stopFaults()
    await this.#heal()
  }

  /** 2, 4, 10, 21: a journal brings back the last checkpoint, however often the power fails, and the pair goes on. */
  async #recoverSecondary(): Promise<void> {
    const { random, plan, scheduler } = this.#world
    for (let crashes = random.whole(1, 4); crashes > 0; crashes -= 1) {
      await this.#restart()
      await scheduler.run(random.pick([0, 2, 300]))
    }
    this.#toolstack.healJournal()
    expect(await this.#run(() => this.#world.secondary.started), '21: a secondary recovers')
    this.#world.secondary.guest.start(plan.secondaryDepth)
    if (random.chance(0.5)) this.#toolstack.start()
    await scheduler.run(random.whole(0, plan.chaosMs))
    await this.#stopFaults()
    await this.#heal()
  }

  /** 9, 10: what was promoted stays so, and stays what it was. */
  async #restartActive(): Promise<void> {
    const { random, plan, scheduler, primary } = this.#world
    // What a guest writes after the last flush, a crash may take: here there is none.
    this.#world.secondary.guest.stop()
    this.#toolstack.heal()
    const unanswered = (): boolean => this.#world.secondary.guest.outstanding.size > 0
    const answered = await this.#run(() => !unanswered())
    if (!answered && this.#mayOverflow()) return
    expect(answered, '21: every request is answered')
    this.#world.crash(primary, true)
    if (!(await this.#promoteIfWhole())) return
    if (plan.durability === 'memory' || plan.secondaryDepth > 0) return
    const { checkpoint, term } = this.#world.secondary.group.status()
    for (let crashes = random.whole(1, 4); crashes > 0; crashes -= 1) {
      await scheduler.run(random.pick([0, 2, 300]))
      await this.#restart()
    }
    this.#toolstack.healJournal()
    expect(await this.#run(() => this.#world.secondary.started), '21: an active copy recovers')
    const status = this.#world.secondary.group.status()
    expect.deepEqual([status.role, status.checkpoint, status.term], ['active', checkpoint, term])
    await this.#serveAlone()
  }

  async #restart(): Promise<void> {
    const { secondary, random, scheduler } = this.#world
    this.#world.crash(secondary, random.chance(0.5))
    await scheduler.run(random.pick([0, 1, 500]))
    this.#world.restart(secondary)
  }

  /** Until everything that was committed is in the secondary's images. */
  async #drainSecondary(): Promise<void> {
    const { secondary } = this.#world
    secondary.guest.flushAll()
    let idle = 0
    for (const { layers } of secondary.disks)
      void layers.idle().then(() => {
        idle += 1
      })
    const { length } = secondary.disks
    const drained = (): boolean => idle === length && outstandingOf(this.#world).length === 0
    expect(await this.#run(drained), 'committed epochs reach the images')
  }

  /** A memory that the guest's own writes can fill leaves no room for the primary's, until it is promoted. */
  #mayOverflow(): boolean {
    const { memory, disks, journalBytes } = this.#world.plan
    const isSmall = memory <= (2 * disks.length + 1) * 256 * 1024
    return this.#oracle.overflows > 0 && (isSmall || journalBytes < 1 << 20)
  }

  #stopGuests(): void {
    this.#world.primary.guest.stop()
    this.#world.secondary.guest.stop()
  }

  #run(done: () => boolean): Promise<boolean> {
    return this.#world.scheduler.run(RECOVERY_MS, done)
  }
}
