/**
 * The disks of one side of a group, from when they are attached until they leave it or the group ends: each with its image,
 * its map of changed regions and what serves it in either role.
 *
 * Invariants:
 *  - The set of disks changes in one turn of the event loop, everywhere: the machines, the layers, and what the journal says of
 *    the records that follow.
 *  - A disk that is added is in no checkpoint before the other side has all of it (machine/disk-sets.ts).
 *  - A disk that leaves takes with it what was committed: its image has all of that when dismiss() resolves.
 *  - The last disk does not leave: with it the group ends (closeGroup()). No peer takes the hello of a group without disks.
 *  - Nothing changes while the role does: a planned exchange waits for a disk that grows, and whoever leads when an image is about
 *    to grow has agreed to that.
 */

import type { BlockDevice } from '../core/block-device.ts'
import { asFault, Fault } from '../core/fault.ts'
import { SECTOR } from '../core/units.ts'
import { ActiveDisk } from './active-disk.ts'
import type { GroupEnvironment } from './environment.ts'
import type { Standing } from './journal/epoch-log.ts'
import { without, type ApartDisks } from './machine/disk-sets.ts'
import type { PrimarySide, TrackedDisk } from './primary-side.ts'
import { RegionMap, type ChangedRange } from './regions/region-map.ts'
import { ReplicaDisk } from './replica-disk.ts'
import type { SecondaryDisk } from './secondary-disk.ts'
import type { SecondarySide } from './secondary-side.ts'
import type { GroupSettings } from './settings.ts'
import { TrackedImage } from './tracked-image.ts'
import type { Troubles } from './troubles.ts'
import { WithheldDisk } from './withheld-disk.ts'

/** How long a primary waits before it tries again to write its journal. */
const RETRY_MS = 1000

export interface Member {
  readonly name: string
  readonly image: TrackedImage
  readonly passive: SecondaryDisk
  readonly active: ActiveDisk
  readonly disk: ReplicaDisk
}

export interface GroupDisksOptions {
  readonly settings: GroupSettings
  readonly environment: GroupEnvironment
  readonly troubles: Troubles
  readonly secondary: () => SecondarySide
  readonly primary: () => PrimarySide | undefined
  /** Why no disk can be changed now. */
  readonly objection: () => string | undefined
  /** The first disk of a group that closes ends it: its disks are one. */
  readonly closeGroup: () => Promise<void>
}

export class GroupDisks {
  readonly #options: GroupDisksOptions
  readonly members: Member[] = []
  /** In the order of the members; there from openRegions() on. */
  readonly regions: RegionMap[] = []
  /** Attached to a group that runs, and not admitted yet. */
  #waiting: Member[] = []
  /** Disks that are growing. */
  readonly #growing = new Set<Promise<void>>()
  #begun = false
  #closed = false

  constructor(options: GroupDisksOptions) {
    this.#options = options
  }

  /** A disk of the group: at once before begin(), else with admit(). */
  attach(name: string, below: BlockDevice): BlockDevice {
    const image = new TrackedImage(below)
    const secondary = this.#options.secondary()
    const passive = secondary.attach(name, image)
    const active = new ActiveDisk(name, image, passive.layers, {
      settled: () => secondary.log.settled(this.members.findIndex((each) => each.name === name)),
    })
    const disk = new ReplicaDisk(name, image, passive, {
      resize: async (size) => {
        const grown = this.#resize(member, size)
        this.#growing.add(grown)
        await grown.finally(() => this.#growing.delete(grown))
      },
      close: async () => {
        try {
          if (this.members.includes(member)) await this.#options.closeGroup()
          else await this.#abandon(member)
        } finally {
          await below.close()
        }
      },
    })
    const member: Member = { name, image, passive, active, disk }
    if (this.#begun) this.#waiting.push(member)
    else {
      this.members.push(member)
      secondary.join(passive)
    }
    return disk
  }

  /** Resolves when no disk grows. @throws Fault TIMEOUT when one still does after so many milliseconds: its image may hang */
  async grown(timeoutMs: number): Promise<void> {
    if (this.#growing.size === 0) return
    let cancel = (): void => undefined
    const late = new Promise<never>((_, reject) => {
      const fault = new Fault('TIMEOUT', 'a disk of the group is growing', {
        where: `group ${this.#options.settings.group}`,
        remedy: 'try again when that has ended',
      })
      cancel = this.#options.environment.timers.after(timeoutMs, () => reject(fault))
    })
    try {
      while (this.#growing.size > 0) await Promise.race([Promise.allSettled(this.#growing), late])
    } finally {
      cancel()
    }
  }

  /** The group begins with the disks that were attached. @throws Fault when a map of changed regions cannot be opened */
  async begin(fresh: boolean): Promise<void> {
    this.#begun = true
    for (const { name, disk } of this.members)
      this.regions.push(await this.#openRegions(name, disk.geometry.size, fresh))
  }

  /** What a primary's disks stand on, and what of them may differ from the last checkpoint. */
  tracked(changed: readonly (readonly ChangedRange[])[]): TrackedDisk[] {
    return this.members.map(({ name, active }, index) => {
      const regions = this.regions[index]
      if (regions === undefined) throw new Error('a group has a map for each disk')
      return { name, below: active, regions, changed: changed[index] ?? [] }
    })
  }

  /** The disks are a primary's from now on. */
  serve(primary: PrimarySide, apart: ApartDisks): void {
    for (const [index, { name, image, disk, passive }] of this.members.entries()) {
      const own = primary.disks[index]
      if (own === undefined) continue
      const device = apart[name] === 'partial' ? new WithheldDisk(name, image) : own
      disk.use(device)
      passive.yieldTo(device)
    }
  }

  /** From now on changes of the images are marked; or not any more. */
  track(on: boolean): void {
    for (const [index, { image }] of this.members.entries())
      image.track(on ? this.regions[index] : undefined)
  }

  async markRanges(changed: readonly (readonly ChangedRange[])[]): Promise<void> {
    for (const [index, regions] of this.regions.entries())
      for (const { at, length } of changed[index] ?? [])
        if (!regions.has(at, length)) await regions.mark(at, length)
  }

  /** The disks that were attached while the group ran are the group's from now on. @throws Fault, and then they are not */
  async admit(): Promise<void> {
    for (let [member] = this.#waiting; member !== undefined; [member] = this.#waiting) {
      try {
        await this.#admit(member)
      } finally {
        this.#waiting = this.#waiting.filter((other) => other !== member)
      }
    }
  }

  /** A disk leaves the group, and with it the group's protection. @throws Fault, with all as it was */
  async dismiss(name: string): Promise<void> {
    const { environment, settings, troubles } = this.#options
    const secondary = this.#options.secondary()
    const member = this.members.find((each) => each.name === name)
    if (member === undefined) return
    await this.refuseDismissal(name)
    const { passive } = member
    await secondary.drain(passive)
    if (passive.layers.isBusy && troubles.concerns(`disk ${name}`))
      throw new Fault('IO', 'its image does not take what was committed', {
        where: `disk "${name}"`,
        remedy: 'repair the image first',
      })
    this.#refuseNow(name)
    this.#refuseEmpty(name)
    const index = this.members.indexOf(member)
    // The journal does not count it from now on, and what was committed may be nowhere else yet.
    const release = secondary.log.keep()
    const [regions] = this.regions.splice(index, 1)
    this.members.splice(index, 1)
    secondary.part(passive)
    const leaving = this.#options.primary()?.removeDisk(name)
    member.image.track(undefined)
    try {
      await Promise.all([leaving, this.#remember((apart) => without(apart, name))])
      // What was under way when it left is part of it.
      await secondary.log.quiet()
      await passive.layers.idle()
    } finally {
      release()
    }
    await regions?.close()
    await environment.removeRegions(settings.group, name).catch((error: unknown) => {
      troubles.report('regions', asFault(error, 'IO', 'cannot remove the map').message)
    })
  }

  async closeRegions(): Promise<void> {
    this.#closed = true
    for (const regions of this.regions) await regions.close()
  }

  async #admit(member: Member): Promise<void> {
    const { name, image, passive, active, disk } = member
    await this.#refuseChange(name)
    // Its size is about to be remembered: a crash must not take it back.
    await image.flush()
    const regions = await this.#openRegions(name, disk.geometry.size, false)
    try {
      this.#refuseNow(name)
    } catch (error) {
      await regions.close()
      throw error
    }
    this.members.push(member)
    this.regions.push(regions)
    this.#options.secondary().join(passive)
    const primary = this.#options.primary()
    if (primary !== undefined) {
      passive.layers.activate()
      image.track(regions)
      const device = primary.addDisk({ name, below: active, regions, changed: [] })
      disk.use(device)
      passive.yieldTo(device)
    }
    const standing = primary === undefined ? 'partial' : 'new'
    await this.#remember((apart) => ({ ...apart, [name]: standing }))
  }

  async #resize(member: Member, size: number): Promise<void> {
    const { name, image, passive } = member
    const before = image.geometry.size
    await this.#refuseChange(name)
    this.#refuseSize(name, before, size)
    let asked: PrimarySide | undefined
    let objection: string | undefined
    do {
      asked = this.#options.primary()
      objection = await asked?.objectionToSize(name, size)
    } while (asked !== this.#options.primary())
    if (objection !== undefined)
      throw new Fault('NOT_PERMITTED', objection, { where: `disk "${name}"` })
    this.#refuseNow(name)
    const own = this.#options
      .primary()
      ?.disks.find((disk, place) => disk.name === name && !this.#isGone(place))
    const work = (): Promise<void> => this.#growImage(member, before, size)
    // In the order in which a guest's write takes the two locks.
    const layersAlone = (): Promise<void> => passive.layers.alone(work)
    await (own === undefined ? layersAlone() : own.alone(layersAlone))
    this.#options.secondary().grown(passive)
    const growing = this.#options.primary()?.growDisk(name, before, size)
    await Promise.all([growing, this.#remember((apart) => apart)])
  }

  #isGone(place: number): boolean {
    return this.#options.primary()?.isGone(place) ?? true
  }

  async #growImage(member: Member, before: number, size: number): Promise<void> {
    const { name, image, passive } = member
    const regions = this.regions[this.members.indexOf(member)]
    const { environment, settings } = this.#options
    await image.resize(size)
    try {
      // Before anybody remembers the size: a crash must not take it back.
      await image.flush()
      await regions?.grow(size, () => environment.openRegions(settings.group, name, size, false))
      passive.layers.grow(size)
      image.agree(size)
    } catch (error) {
      // Where this fails as well the image is larger than its disk, which it may be.
      await image.resize(before).catch(() => undefined)
      throw error
    }
  }

  #refuseSize(name: string, before: number, size: number): void {
    const where = `disk "${name}"`
    const { settings } = this.#options
    if (settings.wire === 'blktap2')
      throw new Fault('NOT_SUPPORTED', 'the blktap2 wire cannot tell the other side of a size', {
        where,
        remedy: 'stop both sides, and grow both images',
      })
    if (size % SECTOR !== 0)
      throw new Fault('INVALID', `a replicated disk cannot have a size of ${size} bytes`, {
        where,
        remedy: `give a multiple of ${SECTOR}`,
      })
    if (size < before)
      throw new Fault('NOT_SUPPORTED', 'a replicated disk does not become smaller', {
        where,
        remedy: 'add a smaller disk, and copy',
      })
  }

  /** @throws Fault when the disk cannot leave now */
  async refuseDismissal(name: string): Promise<void> {
    await this.#refuseChange(name)
    this.#refuseEmpty(name)
  }

  #refuseEmpty(name: string): void {
    if (this.members.length > 1) return
    throw new Fault('NOT_PERMITTED', 'it is the last disk of its group', {
      where: `disk "${name}"`,
      remedy: 'add another one first, or end the group',
    })
  }

  /** @throws Fault when no disk can be changed now */
  async #refuseChange(name: string): Promise<void> {
    const { log } = this.#options.secondary()
    // Nobody else may try that: a pair whose disks have to be changed first has no link.
    if (log.isFailing) await log.restart()
    this.#refuseNow(name)
  }

  #refuseNow(name: string): void {
    const objection = this.#options.objection()
    if (objection === undefined) return
    throw new Fault('NOT_PERMITTED', `the disks of the group cannot be changed: ${objection}`, {
      where: `disk "${name}"`,
      remedy: 'try again when that is over',
    })
  }

  /** What was attached in vain, or has left. */
  async #abandon(member: Member): Promise<void> {
    this.#waiting = this.#waiting.filter((other) => other !== member)
    await member.passive.layers.close()
  }

  /** The change stands; where it cannot be remembered yet, the journal says so when it can be written. */
  async #remember(stand: Standing): Promise<void> {
    const { log } = this.#options.secondary()
    const disks = this.members.map(({ name, image }) => ({ name, size: image.geometry.size }))
    try {
      await log.change(disks, stand)
    } catch (error) {
      if (!(error instanceof Fault)) throw error
      // The journal itself says that it has failed.
      this.#rememberLater()
    }
  }

  /** A secondary's journal is begun anew with its next link. */
  #rememberLater(): void {
    const { environment, troubles, primary, secondary } = this.#options
    environment.timers.after(RETRY_MS, () => {
      const side = primary()
      if (side === undefined || this.#closed) return
      // 10: its role may be given up in what is being remembered now, which says it of the disks as well.
      if (side.isLeaving) return this.#rememberLater()
      void Promise.resolve(secondary().log.persist(side.machine.state(false))).then(
        () => troubles.over('journal'),
        () => this.#rememberLater(),
      )
    })
  }

  async #openRegions(name: string, size: number, fresh: boolean): Promise<RegionMap> {
    const { environment, settings } = this.#options
    return new RegionMap(await environment.openRegions(settings.group, name, size, fresh), size)
  }
}
