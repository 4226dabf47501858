/**
 * Which disks the two sides of a link have in common. Pure; like the verdict, a function of both hellos, so that both sides
 * always reach the same result.
 *
 * Disks are added to and removed from a running group on one side after the other. Meanwhile the disks that both sides
 * have stay protected, and the others stand apart:
 *  - `new` on a primary: its content is right, and no checkpoint has it yet.
 *  - `partial` elsewhere: what is here is no state of the disk. It is neither served nor sent on.
 *
 * Invariants:
 *  - A disk that belongs to the checkpoints of one side, and is not on the other one, is never passed over, but where the
 *    source has removed it from a pair that was one.
 *  - A disk that stands apart on either side counts only when all of it was sent.
 */

import type { DiskIdentity, Hello, RefusalCode } from './handshake.ts'

export type Apart = 'new' | 'partial'

/** Disks that no checkpoint has, by name. */
export type ApartDisks = Readonly<Record<string, Apart>>

export interface HelloDisk extends DiskIdentity {
  /** Left out where the disk belongs to this side's checkpoints. */
  readonly apart?: Apart
}

/** A disk that the source's stream can carry to the target. */
export interface CommonDisk {
  readonly name: string
  /** Whether it has to be sent as a whole before it counts. */
  readonly copies: boolean
  /** Bytes on the target. */
  readonly size: number
}

export function helloDisks(disks: readonly DiskIdentity[], apart: ApartDisks): HelloDisk[] {
  return disks.map(({ name, size }) => {
    const standing = apart[name]
    return standing === undefined ? { name, size } : { name, size, apart: standing }
  })
}

export function commonDisks(source: Hello, target: Hello): CommonDisk[] {
  const theirs = new Map(target.disks.map((disk) => [disk.name, disk]))
  return source.disks.flatMap(({ name, size, apart }) => {
    const other = theirs.get(name)
    if (apart === 'partial' || other === undefined || other.size < size) return []
    return [{ name, size: other.size, copies: apart === 'new' || other.apart !== undefined }]
  })
}

/** Why the two sets of disks cannot be those of one pair, or undefined where they can. */
export function objectionToDisks(
  source: Hello,
  target: Hello,
): { readonly code: RefusalCode; readonly reason: string } | undefined {
  const paired = target.generation !== null
  // One that was paired follows the other side when its toolstack does.
  const code = paired ? 'unready' : 'configuration'
  const theirs = new Map(target.disks.map((disk) => [disk.name, disk]))
  const ours = new Set(source.disks.map(({ name }) => name))
  for (const { name, size, apart } of source.disks) {
    if (apart !== undefined) continue
    const other = theirs.get(name)
    if (other === undefined) return { code, reason: `disk "${name}" exists only on the primary` }
    if (other.size === size || (paired && other.size > size)) continue
    return {
      code,
      reason: `disk "${name}" has ${size} bytes on the primary and ${other.size} on the secondary`,
    }
  }
  for (const { name, apart } of target.disks)
    if (!paired && apart === undefined && !ours.has(name))
      return { code, reason: `disk "${name}" exists only on the secondary` }
  return undefined
}

/** Without the disk. */
export function without(apart: ApartDisks, name: string): ApartDisks {
  return Object.fromEntries(Object.entries(apart).filter(([other]) => other !== name))
}
