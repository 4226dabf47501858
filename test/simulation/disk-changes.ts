/**
 * Who adds disks to both sides of a running group, removes them and has them grow: the two sides in any order, as toolstacks do that
 * know nothing of each other; and who restores them in the end.
 */

import { SECTOR } from '../../core/units.ts'
import { counts, isServed } from './look.ts'
import type { Leaving } from './oracle.ts'
import type { Life } from './scheduler.ts'
import type { SideDisks } from './side-disks.ts'
import type { Side, World } from './world.ts'

/** Sectors that a disk gains at a time, at most, and has at most. */
const GAIN = 9
const LARGEST = 64

export type Change =
  | { readonly kind: 'add' | 'remove'; readonly slot: number }
  | { readonly kind: 'grow'; readonly slot: number; readonly sectors: number }

type Slots = Pick<SideDisks, 'has' | 'isWithheld' | 'size'>

/**
 * What a side lacks first, which is to have the disks of all slots, of the sizes that either side has.
 * @param leads whether it is not a secondary
 */
export function lackOf(
  own: Slots,
  other: Slots,
  slots: readonly number[],
  leads: boolean,
): Change | undefined {
  // The last disk of a group does not leave it: others come first.
  const absent = slots.find((slot) => !own.has(slot))
  if (absent !== undefined) return { kind: 'add', slot: absent }
  for (const slot of slots) {
    // What an active copy has of a disk that was never whole serves nobody: it is removed, and added as it is.
    if (leads && own.isWithheld(slot)) return { kind: 'remove', slot }
    const size = Math.max(own.size(slot), other.size(slot))
    if (own.size(slot) < size) return { kind: 'grow', slot, sectors: size / SECTOR }
  }
  return undefined
}

export interface DiskChangesOptions {
  readonly world: World
  /** Told of each command that fails. */
  readonly failed: (what: string, error: unknown) => void
  /** Told of a disk that has left a side: the last checkpoint was this one when that began. */
  readonly left: (side: Side, slot: number, began: Leaving) => void
}

export class DiskChanges {
  readonly #options: DiskChangesOptions
  /** Processes with a change under way: a server makes one after the other. */
  readonly #busy = new Set<Life>()
  #does: 'nothing' | 'change' | 'restore' = 'nothing'
  #ticking = false

  constructor(options: DiskChangesOptions) {
    this.#options = options
  }

  /** Changes are made at random from now on. */
  start(): void {
    if (!this.#options.world.plan.changes) return
    this.#does = 'change'
    this.#tickLater()
  }

  /** Both sides get what they lack from now on. */
  restore(): void {
    if (!this.#options.world.plan.changes) return
    this.#does = 'restore'
    this.#tickLater()
  }

  stop(): void {
    this.#does = 'nothing'
  }

  /** Whether no command is under way on a process that lives. */
  get isIdle(): boolean {
    return [...this.#busy].every(({ alive }) => !alive)
  }

  /** Whether both sides have the same disks, of the same sizes, and may be used. */
  get isRestored(): boolean {
    const { primary, secondary } = this.#options.world
    return [primary, secondary].every((side) => this.#missing(side) === undefined)
  }

  /** Whether the checkpoints of both have them all. */
  get isWhole(): boolean {
    const { primary, secondary, plan } = this.#options.world
    return (
      this.isRestored &&
      [...plan.disks.keys()].every((slot) => counts(primary, slot) && counts(secondary, slot))
    )
  }

  /** One step towards the same disks on both sides. */
  restoreNow(): void {
    const { primary, secondary } = this.#options.world
    for (const side of [secondary, primary]) {
      const change = this.#missing(side)
      if (change !== undefined) this.#make(side, change)
    }
  }

  #tickLater(): void {
    const { scheduler, random, plan, nobody } = this.#options.world
    if (this.#ticking) return
    this.#ticking = true
    const longestMs = this.#does === 'change' ? plan.changeMs : 50
    scheduler.after(random.delay(0, longestMs), nobody, 'disks', () => {
      this.#ticking = false
      if (this.#does === 'nothing') return
      if (this.#does === 'restore') this.restoreNow()
      else this.#change()
      this.#tickLater()
    })
  }

  #change(): void {
    const { random, primary, secondary, plan } = this.#options.world
    const side = random.chance(0.5) ? primary : secondary
    const slot = random.whole(0, plan.disks.length - 1)
    const { slots } = side
    if (!slots.has(slot)) return this.#make(side, { kind: 'add', slot })
    const many = slots.slots.filter((other) => slots.has(other)).length > 1
    if (many && random.chance(0.6)) return this.#make(side, { kind: 'remove', slot })
    const other = side === primary ? secondary : primary
    // What was begun on one side is mostly what is done on the other one next.
    const wanted = Math.max(slots.size(slot), other.slots.size(slot)) / SECTOR
    const follows = wanted * SECTOR > slots.size(slot) && random.chance(0.7)
    const sectors = follows ? wanted : Math.min(LARGEST, wanted + random.whole(1, GAIN))
    if (sectors * SECTOR > slots.size(slot)) this.#make(side, { kind: 'grow', slot, sectors })
  }

  /** What a side lacks first. */
  #missing(side: Side): Change | undefined {
    const { primary, secondary, plan } = this.#options.world
    const [own, other] = [side.slots, (side === primary ? secondary : primary).slots]
    return lackOf(own, other, [...plan.disks.keys()], side.group.primary !== undefined)
  }

  #make(side: Side, change: Change): void {
    if (!side.life.alive || !side.started || this.#busy.has(side.life)) return
    const { world, failed } = this.#options
    const what = `${change.kind} ${change.slot}`
    world.scheduler.note(`${side.life.name} CHANGE ${JSON.stringify(change)}`)
    this.#busy.add(side.life)
    this.#perform(side, change)
      .then(
        () => world.scheduler.note(`${side.life.name} CHANGED ${what}`),
        (error: unknown) => failed(`${side.life.name}: ${what}`, error),
      )
      .finally(() => this.#busy.delete(side.life))
      .catch((error: unknown) => world.scheduler.fail(error))
  }

  async #perform(side: Side, change: Change): Promise<void> {
    const { slots, registers, images, group } = side
    const { slot } = change
    switch (change.kind) {
      case 'add':
        await slots.add(slot)
        return
      case 'remove': {
        const { checkpoint } = group.status()
        const led = group.primary !== undefined
        const counted = counts(side, slot) && isServed(side)
        await slots.remove(slot)
        if (counted) this.#options.left(side, slot, { checkpoint, led })
        registers[slot]!.rebase(images[slot]!.completed)
        return
      }
      case 'grow':
        await slots.grow(slot, change.sectors)
        registers[slot]!.grow(slots.size(slot) / SECTOR, group.primary !== undefined)
    }
  }
}
