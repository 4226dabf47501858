/** Who decides what no program may: whose changes go after a split, and that a side which was used and deposed is a secondary now. */

import { strict as expect } from 'node:assert'

import { DEPOSED } from '../../replication/machine/reasons.ts'
import { isProtected, type Oracle } from './oracle.ts'
import type { Side, World } from './world.ts'

/** Virtual milliseconds that a side takes to start, and a command to be answered, at the most. */
const START_MS = 60_000
const ANSWER_MS = 40_000

/** What tells whether a side waits for an operator. */
interface Deposable {
  readonly group: {
    readonly demoting: boolean
    readonly primary: { readonly machine: { readonly reason: string | null } } | undefined
  }
  readonly guest: { readonly hasAsked: boolean }
}

/**
 * Whether an operator has to demote a side: it says so, and its guest has used it. One that nobody has used follows by itself, and so
 * does one whose demotion was begun: these get no help.
 */
export function awaitsDemotion({ group, guest }: Deposable): boolean {
  return group.primary?.machine.reason === DEPOSED && guest.hasAsked && !group.demoting
}

export class Operator {
  readonly #world: World
  readonly #oracle: Oracle

  constructor(world: World, oracle: Oracle) {
    this.#world = world
    this.#oracle = oracle
  }

  /** Says whose changes go. */
  async choose(side: Side, discard: 'local' | 'remote'): Promise<void> {
    await this.#answered('connect', side.group.resolveSplit(discard))
  }

  /** 18: where both sides went on alone, nothing happens until it is said whose changes go. */
  async resolveSplit(): Promise<void> {
    const { random, scheduler } = this.#world
    const started = (): boolean => this.#world.primary.started && this.#world.secondary.started
    await scheduler.run(START_MS, started)
    // A dead link may have to be noticed first, and then a few calls may fail.
    const isSplit = (): boolean =>
      this.#world.primary.group.primary?.machine.reason?.includes('split brain') === true
    const isWell = (): boolean =>
      isProtected(this.#world.primary) && isProtected(this.#world.secondary)
    await scheduler.run(2_500, () => isSplit() || isWell())
    const { primary, secondary } = this.#world
    if (!isSplit()) return
    if (random.chance(0.5)) await this.choose(primary, 'remote')
    else await this.choose(secondary, 'local')
  }

  /** 13, 21: stops the guest of a deposed side and makes it a secondary, as the side itself says that it must be. */
  async demote(side: Side): Promise<void> {
    side.guest.stop()
    await this.#answered('demote', side.group.demote(false))
  }

  async #answered(command: string, answer: Promise<unknown>): Promise<void> {
    let answered = false
    answer.then(
      () => (answered = true),
      (error: unknown) => {
        answered = true
        this.#oracle.commandFailed(command, error)
      },
    )
    const isAnswered = await this.#world.scheduler.run(ANSWER_MS, () => answered)
    expect(isAnswered, `21: ${command} is answered`)
  }
}
