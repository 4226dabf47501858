/**
 * The judge of a simulated run. It knows what the primary's disks held at each checkpoint marker (Cn), and looks at
 * both sides after each event. The numbers are those of the invariants in docs/architecture.md.
 */

import { strict as expect } from 'node:assert'

import { Fault } from '../../core/fault.ts'
import type { GroupEvent, VerifyReport } from '../../replication/group.ts'
import { PARTIAL, type Frame } from '../../replication/machine/frame.ts'
import { SECTOR } from '../../core/units.ts'
import { AckWatch } from './ack-watch.ts'
import { Departures } from './departures.ts'
import type { Plan } from './plan.ts'
import { contentOf, glimpse, wordsOf } from './sectors.ts'
import { completedOf, counts, isServed, readable, sightOn, type Contents } from './look.ts'
import type { Life } from './scheduler.ts'
import { diskName } from './side-disks.ts'
import type { Observer, Side, World } from './world.ts'

/** How a side was when a disk began to leave it. */
export interface Leaving {
  readonly checkpoint: number
  /** Whether it was the primary. */
  readonly led: boolean
}

export class Oracle implements Observer {
  /** Checkpoints that were committed, in all. */
  commits = 0
  overflows = 0
  /** Verifies that have seen everything. */
  verifies = 0
  /** What the secondary holds was changed behind its back: until that is repaired, it is not what it should be. */
  corrupted = false
  readonly #plan: Plan
  readonly #acks: AckWatch
  readonly #departures = new Departures()
  /** The last checkpoint that was reported to the primary. */
  #done = 0
  /** The process that reported it. */
  #doneBy: Life | undefined
  /** The secondary's last checkpoint. */
  #committed = 0
  readonly #snapshots = new Map<number, Contents>()
  #world: World | undefined
  /** Markers that end a part of a copy: nobody has to find these states. */
  readonly #partials = new Set<number>()
  /** From here on the secondary's guest, not its primary, changes what it holds. */
  #promoted = false
  /** Whether the secondary is at a checkpoint of its primary. */
  #paired = false
  /** The roles are being exchanged in order: the next promote does it. */
  switching = false
  /** Markers of the present line that were sent; after parted() only those of the new primary. */
  readonly #sent = new Set<number>()
  /**
   * Processes whose toolstack has switched replication off. None of them is protected; the next process of the host knows nothing of it,
   * whoever starts it: the toolstack, or a supervisor after a journal that failed.
   */
  readonly switchedOff = new Set<Life>()
  /** The side that may not call itself protected now, and why. */
  forbidden: { readonly side: 'primary' | 'secondary'; readonly why: string } | undefined

  constructor(plan: Plan) {
    this.#plan = plan
    this.#acks = new AckWatch(plan.ack)
  }

  watch(world: World): void {
    this.#world = world
    this.#paired = world.plan.identical
    this.#snapshots.set(
      0,
      world.primary.images.map(({ completed }) => completed.slice()),
    )
    world.scheduler.settled = (life) => this.#settled(life)
  }

  get #there(): World {
    expect(this.#world !== undefined)
    return this.#world
  }

  /** A marker leaves: what the primary's images have completed is the checkpoint. */
  primarySends(frame: Readonly<Frame>): void {
    this.#acks.primarySends(frame)
    this.#departures.primarySends(frame, this.#there.primary.images)
    if (frame.type !== 'checkpoint') return
    this.#sent.add(frame.position)
    if ((frame.flags & PARTIAL) !== 0) return void this.#partials.add(frame.position)
    this.#partials.delete(frame.position)
    const { registers } = this.#there.primary
    this.#check(frame.position > this.#committed, `checkpoint ${frame.position} is a new one`)
    // What a disk has gained is part of it when its guest is told.
    const snapshot = completedOf(this.#there.primary).map((content, disk) =>
      content?.slice(0, registers[disk]!.count),
    )
    this.#snapshots.set(frame.position, snapshot)
    for (const [disk, content] of snapshot.entries()) {
      // What serves nobody was promised to nobody.
      if (content === undefined || this.#there.primary.slots.isWithheld(disk)) continue
      const objection = registers[disk]!.objectionTo(content)
      this.#check(
        objection === undefined,
        `5: C${frame.position} has what was acked before it: disk ${disk}: ${objection}`,
      )
    }
  }

  /** 5: with ack=received and ack=durable a write completes when the secondary has it. */
  writeCompleted(side: Side, slot: number, tag: number): void {
    if (side !== this.#there.primary || !isProtected(side)) return
    // A disk that is in no checkpoint of either side is not protected yet, whatever the others are.
    const lacking = side.group.primary?.machine.lacking ?? {}
    if (!counts(side, slot) || lacking[diskName(slot)] !== undefined) return
    const objection = this.#acks.completed(tag)
    this.#check(objection === undefined, `5: ${objection}`)
  }

  secondarySends(frame: Readonly<Frame>): void {
    const { secondary, journals } = this.#there
    const objected = this.#acks.secondarySends(frame, journals[secondary.host])
    this.#check(objected === undefined, `5: ${objected}`)
    this.#departures.secondarySends(frame)
    if (frame.type === 'refuse') this.overflows += frame.payload.includes('"overflow"') ? 1 : 0
    if (frame.type !== 'done' || this.#partials.has(frame.position)) return
    this.#done = Math.max(this.#done, frame.position)
    this.#doneBy = this.#there.secondary.life
    const checkpoint = this.#there.secondary.group.secondary.machine.committed
    this.#check(
      checkpoint >= frame.position,
      `3: done(${frame.position}) at checkpoint ${checkpoint}`,
    )
    const objection = this.#objectionTo(frame.position)
    this.#check(objection === undefined, `3: done(${frame.position}) sent while ${objection}`)
    this.#check(
      this.#plan.durability === 'memory' || journals[secondary.host].commits.has(frame.position),
      `3: done(${frame.position}) sent before its record is on stable storage`,
    )
  }

  /** Nothing differs but what was corrupted, whatever is being written meanwhile. */
  verified({ state, differentBytes, ranges }: VerifyReport): void {
    if (state === 'equal' || state === 'different') this.verifies += 1
    const found = JSON.stringify(ranges)
    this.#check(
      differentBytes === 0 || this.corrupted,
      `12: a verify finds ${differentBytes} bytes to differ: ${found}`,
    )
  }

  /** 2, 4, 10: what was recovered is one checkpoint, no older than any that was reported as done. */
  secondaryStarted(side: Side): void {
    const { group, registers } = side
    const { checkpoint } = group.status()
    this.#paired &&= this.#plan.durability === 'journal' && (isServed(side) || this.#isFresh(side))
    // The last checkpoint of a copy may have survived the power failure before anybody was told of it: then the copy is whole.
    this.#paired ||=
      this.#plan.durability === 'journal' && isWhole(side) && this.#sent.has(checkpoint)
    if (!this.#paired) return
    this.#check(checkpoint >= this.#done, `2: recovered ${checkpoint}, done was ${this.#done}`)
    const snapshot = this.#snapshots.get(checkpoint)
    this.#check(snapshot !== undefined, `1: recovered ${checkpoint}, which was announced`)
    this.#committed = checkpoint
    for (const [disk, register] of registers.entries())
      if (counts(side, disk)) register.rebase(snapshot[disk]!)
    const objection = this.#objectionTo(checkpoint)
    this.#check(objection === undefined, `1, 4: recovered ${checkpoint} but ${objection}`)
  }

  secondaryEvent(event: GroupEvent): void {
    if (event.event === 'REPLICATION_ROLE')
      return event.data.role === 'active' ? this.promoted() : undefined
    if (event.event === 'REPLICATION_LINK') {
      for (const { layers, name } of this.#there.secondary.disks)
        this.#check(layers.pendingBytes === 0, `1, 20: a new stream begins with ${name} empty`)
    }
    if (event.event !== 'REPLICATION_CHECKPOINT') return
    const { checkpoint } = event.data
    this.#paired ||= this.#sent.has(checkpoint)
    this.commits += 1
    this.#committed = checkpoint
    const snapshot = this.#snapshots.get(checkpoint)
    this.#check(snapshot !== undefined, `1: checkpoint ${checkpoint} was announced`)
    for (const [disk, registers] of this.#there.secondary.registers.entries())
      if (counts(this.#there.secondary, disk)) registers.rebase(snapshot[disk]!)
    const objection = this.#objectionTo(checkpoint)
    this.#check(objection === undefined, `4, 7: committed ${checkpoint} but ${objection}`)
  }

  /** A disk has left a side: its image holds what was acknowledged, or is as of a checkpoint. */
  diskLeft(side: Side, slot: number, { checkpoint: since, led }: Leaving): void {
    const content = side.images[slot]!.completed
    if (side.group.primary !== undefined) {
      const objection = side.registers[slot]!.objectionTo(content)
      if (objection === undefined) return
      // It may have left before its side was promoted: nothing was acknowledged of it then.
      this.#check(!led, `11: disk ${slot} has left: ${objection}`)
    }
    if (side !== this.#there.secondary || !this.#paired || this.corrupted) return
    // Parts of a copy count here: they are no checkpoints, and go into the image.
    const until = side.group.secondary.machine.committed
    const fits = this.#departures.allows({ slot, since, until, content }, this.#snapshots)
    this.#check(fits, `1: disk ${slot} has left as no checkpoint from ${since} on`)
  }

  /** What knows nothing yet is what it was at the start. */
  #isFresh({ group }: Side): boolean {
    return this.#plan.identical && group.secondary.machine.state.generation === null
  }

  /** The toolstack was told that a checkpoint was taken. */
  reported(checkpoint: number): void {
    const { secondary } = this.#there
    if (!secondary.life.alive || !secondary.started) return
    // What was in memory died with its process.
    if (this.#plan.durability === 'memory' && secondary.life !== this.#doneBy) return
    const held = secondary.group.secondary.machine.committed
    this.#check(held >= checkpoint, `2: reported ${checkpoint}, the secondary is at ${held}`)
  }

  /** A part of a copy was sent: if it arrives, the secondary is a mixture, which a forced promote serves as it is. */
  get isCopying(): boolean {
    const { committed } = this.#there.secondary.group.secondary.machine
    return [...this.#partials].some((marker) => marker > committed)
  }

  /** The primary has lost what it knew of the secondary. */
  parted(): void {
    this.#paired = false
    this.#sent.clear()
  }

  /** The two sides have exchanged their roles: what the new secondary holds counts from its first checkpoint on. */
  exchanged(): void {
    this.#promoted = false
    this.#paired = false
    this.#sent.clear()
    this.forbidden = undefined
  }

  /** The secondary has just become active. */
  promoted(): void {
    this.#promoted = true
    this.checkReadable()
    if (this.#plan.mode === 'remus') {
      const objection = this.#objectionTo(this.#there.secondary.group.status().checkpoint)
      this.#check(objection === undefined, `9: promoted but ${objection}`)
    }
    if (!this.switching) return
    this.switching = false
    this.#there.exchangeRoles()
    this.exchanged()
  }

  /** 6, 7, 8, 9, 11: what a guest of the secondary could read now is what it may read. */
  checkReadable(): void {
    const { secondary } = this.#there
    if (!secondary.life.alive || !secondary.started || !isServed(secondary)) return
    if (this.corrupted) return
    for (const [disk, content] of readable(secondary).entries()) {
      if (content === undefined || !counts(secondary, disk)) continue
      const objection = secondary.registers[disk]!.objectionTo(content)
      if (objection !== undefined)
        this.#check(false, `1, 6, 8, 11: disk ${disk} of the secondary: ${objection}`)
    }
  }

  /** When all is quiet: what is in the images, with nothing over them. */
  checkImages(): void {
    const { secondary } = this.#there
    for (const [disk, { bytes }] of secondary.images.entries()) {
      if (!counts(secondary, disk)) continue
      const objection = secondary.registers[disk]!.objectionTo(contentOf(bytes))
      this.#check(objection === undefined, `8, 9: image ${disk} of the secondary: ${objection}`)
    }
  }

  /** 12: both images are equal, byte for byte. */
  checkEqual(): void {
    const { primary, secondary } = this.#there
    const bytesOf = ({ images, slots }: Side, disk: number): Buffer =>
      images[disk]!.bytes.subarray(0, slots.size(disk))
    for (const disk of primary.images.keys())
      this.#check(
        bytesOf(primary, disk).equals(bytesOf(secondary, disk)),
        `12: images ${disk} are equal`,
      )
  }

  /** What a command of the toolstack failed with must be a fault that it can act on. */
  commandFailed(command: string, error: unknown): void {
    if (!(error instanceof Fault)) this.#there.scheduler.fail(error)
    else this.#there.scheduler.note(`${command}: ${error.message}`)
  }

  #settled(life: Life): void {
    // What happens on the primary reaches the secondary with an event of its own.
    if (life !== this.#there.primary.life) this.checkReadable()
    this.#checkDirtyCover()
    this.#checkRegionCover()
    this.#there.rules.settled()
    for (const off of this.switchedOff) this.#checkOff(off)
    if (this.forbidden === undefined) return
    const { side, why } = this.forbidden
    const suspect = this.#there[side]
    this.#check(
      !suspect.life.alive || suspect.group.primary === undefined || !isProtected(suspect),
      `18: ${suspect.life.name} is protected: ${why}`,
    )
  }

  /** Toolstacks have switched it off there. */
  #checkOff(life: Life): void {
    const { primary, secondary } = this.#there
    const side = [primary, secondary].find((each) => each.life === life)
    this.#check(
      side === undefined || !life.alive || !isProtected(side),
      `18: ${life.name} is protected: it was switched off`,
    )
  }

  /** 15: where the primary's image differs from the secondary's checkpoint, a block is dirty or being written. */
  #checkDirtyCover(): void {
    const { primary, secondary } = this.#there
    if (!primary.life.alive || !secondary.life.alive || this.#promoted) return
    if (!this.#paired || !secondary.started) return
    if (!secondary.group.secondary.machine.consistent) return
    const machine = primary.group.primary?.machine
    if (machine === undefined) return
    const snapshot = this.#snapshots.get(this.#committed)!
    const now = completedOf(primary)
    for (const [disk, image] of primary.images.entries()) {
      // What is in no checkpoint is sent as a whole.
      if (!counts(primary, disk) || !counts(this.#there.secondary, disk)) continue
      const held = snapshot[disk]!
      const present = now[disk]!
      const index = primary.slots.indexOf(disk)
      let dirtyUntil = 0
      for (let sector = 0; sector < primary.registers[disk]!.count; sector += 1) {
        if (present[sector] === (held[sector] ?? 0)) continue
        if (sector * SECTOR < dirtyUntil || image.isChanging(sector)) continue
        const run = machine.nextDirty(index, sector * SECTOR, SECTOR, machine.committed)
        const covered = run !== undefined && run.at <= sector * SECTOR
        this.#check(covered, `15: sector ${sector} of disk ${disk} differs and is not dirty`)
        dirtyUntil = run.at + run.length
      }
    }
  }

  /**
   * 15: where the primary's image differs from the last checkpoint, its region is marked on stable storage: also between
   * two of its processes.
   */
  #checkRegionCover(): void {
    const { primary, secondary, regions } = this.#there
    if (this.#plan.durability === 'memory' || this.#promoted || !this.#paired) return
    if (primary.life.alive && !primary.started) return
    if (!secondary.started || !secondary.life.alive) return
    if (!secondary.group.secondary.machine.consistent || this.corrupted) return
    // What lies over an image that was a secondary's is no change.
    if (primary.disks.some(({ layers }) => layers.isBusy)) return
    const snapshot = this.#snapshots.get(this.#committed)!
    for (const [disk, { bytes }] of primary.images.entries()) {
      if (!counts(primary, disk) || !counts(secondary, disk)) continue
      const held = snapshot[disk]!
      const { content } = sightOn(primary.sight, disk, bytes.length / SECTOR)
      glimpse(wordsOf(bytes), content)
      for (let sector = 0; sector < primary.registers[disk]!.count; sector += 1) {
        if (content[sector] === (held[sector] ?? 0)) continue
        const marked = regions[primary.host].marks(`disk${disk}`, sector)
        if (!marked)
          this.#check(
            false,
            `15: sector ${sector} of disk ${disk} differs and its region is not marked`,
          )
      }
    }
  }

  /** What is wrong with the secondary's recoverable disks as checkpoint n, where its guest has not written itself. */
  #objectionTo(n: number): string | undefined {
    const { secondary } = this.#there
    const snapshot = this.#snapshots.get(n)
    if (this.corrupted) return undefined
    if (snapshot === undefined) return `checkpoint ${n} was never announced`
    for (const [disk, content] of readable(secondary).entries()) {
      if (content === undefined || !counts(secondary, disk)) continue
      const wanted = snapshot[disk]
      if (wanted === undefined) return `disk ${disk} is in no checkpoint, and counts`
      for (let sector = 0; sector < wanted.length; sector += 1)
        if (content[sector] !== wanted[sector])
          return `sector ${sector} of disk ${disk} is ${content[sector]}, not ${wanted[sector]} as in C${n}`
    }
    return undefined
  }

  #check(condition: boolean, claim: string): asserts condition {
    if (condition) return
    const error = new Error(claim)
    this.#there.scheduler.fail(error)
    throw error
  }
}

export function isProtected({ group }: Side): boolean {
  // The machine's answer is the status's, and is had for less.
  const { machine } = group.primary ?? group.secondary
  return machine.protection === 'protected'
}

/** Whether it is a secondary that remembers a whole copy. */
function isWhole({ group }: Side): boolean {
  const { consistent, generation } = group.secondary.machine.state
  return group.primary === undefined && consistent && generation !== null
}
