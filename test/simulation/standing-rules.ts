/**
 * Rules that hold after each event of a run, whatever its story; the oracle knows what disks have to hold, these know
 * how both sides have to behave. The numbers are those of the invariants in docs/architecture.md.
 */

import type { GroupEvent, Protection } from '../../replication/group.ts'
import { SLAB } from '../../ramdisk/page-memory.ts'
import type { Life } from './scheduler.ts'
import type { Side, World } from './world.ts'

/** Told of what happens on a side. */
export interface Watchers {
  readonly acknowledged: (life: Life) => void
  readonly mustRefuse: (life: Life, slot: number) => boolean
}

/** Slabs that a flush of a disk has at most beside the limit: its requests in flight, and one to spell out zeroes. */
const STAGING = 3

/** What was seen of a side when the event before had settled. */
interface Seen {
  /** Its machine: each role has one. */
  machine: object | undefined
  protection: Protection | undefined
  /** The protection that it told of last. */
  told: Protection | undefined
  frozen: boolean
  /** It has told of the loss of its link, and of no new one. */
  lost: boolean
}

export class StandingRules implements Watchers {
  readonly #world: World
  readonly #seen = new Map<Life, Seen>()
  /** By term: the host whose guest's writes were acknowledged in it. */
  readonly #leaders = new Map<number, string>()

  constructor(world: World) {
    this.#world = world
  }

  /** After each event. */
  settled(): void {
    for (const side of [this.#world.primary, this.#world.secondary]) {
      if (!side.life.alive || !side.started) continue
      this.#checkMemory(side)
      this.#checkTold(side)
      this.#of(side.life).frozen = side.group.primary?.machine.frozen === true
    }
  }

  event(life: Life, event: GroupEvent): void {
    const seen = this.#of(life)
    if (event.event === 'REPLICATION_LINK') seen.lost = !event.data.up
    // A commit takes away what the secondary's guest wrote: who heard of the loss and went on would lose acknowledged writes.
    if (event.event === 'REPLICATION_CHECKPOINT' && seen.lost)
      this.#fail(
        `8: ${life.name} commits checkpoint ${event.data.checkpoint} after it told of the loss of its link`,
      )
    if (event.event !== 'REPLICATION_PROTECTION') return
    seen.told = event.data.protection
    // What is acknowledged in the instant of a thaw is right, though the next freeze follows at once.
    if (seen.told !== 'frozen') seen.frozen = false
  }

  /** A guest's write has been acknowledged. */
  readonly acknowledged = (life: Life): void => {
    const side = this.#sideOf(life)
    const machine = side?.group.primary?.machine
    if (side === undefined || machine === undefined) return
    if (machine.frozen && this.#of(life).frozen)
      this.#fail(`14: ${life.name} is frozen and acknowledges a write`)
    if (this.#world.plan.durability === 'memory') return
    const leader = this.#leaders.get(machine.term) ?? side.host
    this.#leaders.set(machine.term, leader)
    if (leader !== side.host)
      this.#fail(
        `13: ${life.name} acknowledges a write in term ${machine.term}, which is ${leader}'s`,
      )
  }

  /** 17: whether a guest's request must be refused now. */
  readonly mustRefuse = (life: Life, slot: number): boolean => {
    const side = this.#sideOf(life)
    if (side === undefined) return false
    if (side.slots.isWithheld(slot)) return true
    if (side.group.primary !== undefined) return false
    const { consistent, generation } = side.group.secondary.machine.state
    return this.#world.plan.mode === 'remus' || !consistent || generation === null
  }

  /** 20: what is received stays within the memory. */
  #checkMemory({ life, group, disks }: Side): void {
    const { bytesInUse, limit } = group.secondary.memory
    if (bytesInUse > limit + STAGING * disks.length * SLAB)
      this.#fail(`20: ${life.name} has ${bytesInUse} bytes in use, of ${limit}`)
  }

  /** 20: protection changes with an event. */
  #checkTold({ life, group }: Side): void {
    const seen = this.#of(life)
    const { machine } = group.primary ?? group.secondary
    const { protection } = machine
    const isNew = machine !== seen.machine
    if (!isNew && protection !== seen.protection && protection !== seen.told)
      this.#fail(
        `20: ${life.name} is ${protection}, and was ${seen.protection ?? ''}, without a word`,
      )
    seen.machine = machine
    seen.protection = protection
  }

  #of(life: Life): Seen {
    let seen = this.#seen.get(life)
    if (seen === undefined) {
      seen = {
        ...{ machine: undefined, protection: undefined, told: undefined },
        ...{ frozen: false, lost: false },
      }
      this.#seen.set(life, seen)
    }
    return seen
  }

  #sideOf(life: Life): Side | undefined {
    return [this.#world.primary, this.#world.secondary].find((side) => side.life === life)
  }

  #fail(claim: string): void {
    this.#world.scheduler.fail(new Error(claim))
  }
}
