/**
 * A primary becomes a secondary: because an operator says so, because another primary leads, or to exchange the roles.
 *
 * Invariants:
 *  - 10 The role is remembered as given up before anything follows from it.
 *  - 13 No guest's write is taken from the first instant on, whether this succeeds or not.
 *  - 21 What was begun comes to its end: a side that does not lead any more and does not follow either is of no use, and its
 *    disks cannot be changed. Where a disk or the journal fails it is tried again until they work, whoever asked for it. Nobody
 *    else would: the other side's calls may be refused for what has to be changed here.
 */

import { asFault, Fault } from '../core/fault.ts'
import type { GroupEnvironment } from './environment.ts'
import type { ReplicaState } from './machine/replica-state.ts'
import type { PrimarySide } from './primary-side.ts'
import type { ChangedRange } from './regions/region-map.ts'
import type { SecondarySide } from './secondary-side.ts'
import type { TrackedImage } from './tracked-image.ts'
import type { Troubles } from './troubles.ts'

/** How long it waits after a failure. */
const RETRY_MS = 1000

export interface DemotionContext {
  readonly group: string
  readonly environment: Pick<GroupEnvironment, 'logger' | 'timers'>
  readonly troubles: Troubles
  /** Undefined once this side is a secondary. */
  readonly primary: () => PrimarySide | undefined
  readonly secondary: () => SecondarySide
  readonly images: () => readonly TrackedImage[]
  /** It is remembered: this side is a secondary from the instant of this call on. */
  readonly follow: (state: ReplicaState, changed: readonly (readonly ChangedRange[])[]) => void
}

export class Demotion {
  readonly #context: DemotionContext
  #underWay: Promise<void> | undefined
  /** Ends the wait for the next attempt. */
  #cancel: (() => void) | undefined
  #closed = false

  constructor(context: DemotionContext) {
    this.#context = context
  }

  /** Whether it has begun, and this side is not a secondary yet. */
  get isBegun(): boolean {
    return this.#underWay !== undefined || this.#cancel !== undefined
  }

  /** The attempt that is being made, if one is. */
  get underWay(): Promise<void> | undefined {
    return this.#underWay
  }

  /**
   * Resolves when this side is a secondary. @throws Fault where this attempt fails; others follow
   * @param decided called when the role is given up, durably, and the link is still there
   */
  begin(reason: string, decided?: () => void): Promise<void> {
    this.#cancel?.()
    this.#cancel = undefined
    this.#underWay ??= this.#attempt(reason, decided).finally(() => {
      this.#underWay = undefined
    })
    return this.#underWay
  }

  /** Begins it where nobody waits for the outcome. What fails is told as a trouble of the group. */
  start(reason: string, decided?: () => void): void {
    void this.begin(reason, decided).catch(() => undefined)
  }

  /** The group ends: nothing is tried any more. Resolves when nothing is under way. */
  async close(): Promise<void> {
    this.#closed = true
    this.#cancel?.()
    this.#cancel = undefined
    await this.#underWay?.catch(() => undefined)
  }

  async #attempt(reason: string, decided?: () => void): Promise<void> {
    try {
      await this.#becomeSecondary(reason, decided)
    } catch (error) {
      const { code, message } = asFault(error, 'IO', 'the role cannot be given up')
      const again = !this.#closed && !this.#context.secondary().stopping
      const what = `this side cannot become a secondary yet${again ? ', and tries again' : ''}: ${message}`
      this.#context.troubles.report('role', what)
      if (again) this.#later(reason, decided)
      throw new Fault(code, what, { where: `group ${this.#context.group}`, cause: error })
    }
  }

  #later(reason: string, decided?: () => void): void {
    this.#cancel = this.#context.environment.timers.after(RETRY_MS, () => {
      this.#cancel = undefined
      this.start(reason, decided)
    })
  }

  async #becomeSecondary(reason: string, decided?: () => void): Promise<void> {
    const { group, environment } = this.#context
    const [primary, secondary] = [this.#context.primary(), this.#context.secondary()]
    if (primary === undefined) return
    environment.logger.warn({ group, reason }, 'becoming a secondary')
    const fault = new Fault('NOT_PERMITTED', `this side is being demoted: ${reason}`, {
      where: group,
    })
    if (decided === undefined) await primary.end(fault)
    else await primary.retire(fault)
    await secondary.drained()
    for (const image of this.#context.images()) await image.flush()
    const state = followerOf(primary.machine.state(true))
    const changed = primary.changes()
    await secondary.log.persist(state)
    decided?.()
    if (decided !== undefined) await primary.end(fault)
    this.#context.follow(state, changed)
  }
}

/** What a primary remembers as a secondary. */
function followerOf(state: ReplicaState): ReplicaState {
  // What no checkpoint has is nothing that the other side could build on.
  const apart = Object.keys(state.apart).map((name) => [name, 'partial'] as const)
  return { ...state, role: 'secondary', apart: Object.fromEntries(apart) }
}
