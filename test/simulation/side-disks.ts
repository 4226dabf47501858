/**
 * The disks of a simulated process. A host has images in slots; which of them its group has is the toolstack's choice, and is
 * what its next process begins with. Like exports of a server: clients are ended before a disk leaves, and learn a size once it is agreed on.
 */

import type { BlockDevice } from '../../core/block-device.ts'
import { SECTOR } from '../../core/units.ts'
import type { ReplicaGroup } from '../../replication/replica-group.ts'
import type { SecondaryDisk } from '../../replication/secondary-disk.ts'
import type { VirtualImage } from './image.ts'

export interface SideDisksOptions {
  readonly group: ReplicaGroup
  readonly images: readonly VirtualImage[]
  /** Slots of the host whose disks its processes begin with; outlives them. */
  readonly present: Set<number>
  /** Resolves when the guest has no request on a disk under way, or has been waited for long enough. */
  readonly dismissed: (slot: number) => Promise<void>
}

export class SideDisks {
  /** By slot: what guests use; undefined where there is nothing to use. */
  readonly devices: (BlockDevice | undefined)[]
  readonly #options: SideDisksOptions
  readonly #removed = new Set<number>()

  constructor(options: SideDisksOptions) {
    const { group, images, present } = options
    this.#options = options
    this.devices = images.map((image, slot) =>
      present.has(slot) ? group.attach(diskName(slot), image) : undefined,
    )
  }

  get slots(): readonly number[] {
    return [...this.#options.images.keys()]
  }

  has(slot: number): boolean {
    return this.#options.present.has(slot)
  }

  /** Bytes: as its group has agreed on, where it has it. */
  size(slot: number): number {
    return this.memberOf(slot)?.layers.size ?? this.#options.images[slot]!.geometry.size
  }

  /** What a slot is as a secondary's disk, if the group has it now. */
  memberOf(slot: number): SecondaryDisk | undefined {
    return this.#options.group.secondary.disks.find(({ name }) => name === diskName(slot))
  }

  /** Whether a request may have waited while the disk was removed: it is refused when it goes on. */
  wasRemoved(slot: number): boolean {
    return this.devices[slot] === undefined || this.#removed.has(slot)
  }

  /** The number of a slot in the machine of a primary; -1 where it has none. */
  indexOf(slot: number): number {
    const { primary } = this.#options.group
    return (
      primary?.disks.findIndex(
        ({ name }, index) => name === diskName(slot) && !primary.isGone(index),
      ) ?? -1
    )
  }

  /** Whether its clients are served nothing: in this role it is in no checkpoint, and no copy of it is whole. */
  isWithheld(slot: number): boolean {
    const { primary, secondary } = this.#options.group
    const apart = primary?.machine.apart ?? secondary.machine.state.apart
    const standing = apart[diskName(slot)]
    return primary === undefined ? standing !== undefined : standing === 'partial'
  }

  async add(slot: number): Promise<void> {
    const { group, images, present } = this.#options
    const device = group.attach(diskName(slot), images[slot]!)
    try {
      await group.admit()
    } catch (error) {
      await device.close()
      throw error
    }
    present.add(slot)
    this.devices[slot] = device
  }

  async remove(slot: number): Promise<void> {
    const { group, present, dismissed } = this.#options
    const device = this.devices[slot]!
    await group.refuseDismissal(diskName(slot))
    this.devices[slot] = undefined
    try {
      await dismissed(slot)
      await group.dismiss(diskName(slot))
    } catch (error) {
      this.devices[slot] = device
      throw error
    }
    this.#removed.add(slot)
    present.delete(slot)
    await device.close()
  }

  async grow(slot: number, sectors: number): Promise<void> {
    await this.devices[slot]!.resize(sectors * SECTOR)
  }
}

export function diskName(slot: number): string {
  return `disk${slot}`
}
