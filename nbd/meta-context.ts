/**
 * The metadata contexts of an export: what BLOCK_STATUS can tell about its blocks (section "Metadata querying").
 *
 *   base:allocation         holes and zeroes, of every export
 *   qemu:allocation-depth   the layer of a backing chain, where the device knows it (QEMU's docs/interop/nbd)
 *   colotap:dirty           1 where blocks changed since the last checkpoint, where the device knows it
 */

import type { BlockDevice, ExtentKind, MapExtent } from '../core/block-device.ts'
import { then, type MaybePromise } from '../core/maybe-promise.ts'
import { NBD_STATE_HOLE, NBD_STATE_ZERO } from './protocol.ts'

export interface MetaContext {
  /** The same for every client and export; the protocol lets a client rely on neither. */
  readonly id: number
  readonly name: string
  /** Extents as status() gives them, each with the flags of this context. */
  query(device: BlockDevice, at: number, length: number): MaybePromise<MapExtent[]>
}

const STATE_OF: Readonly<Record<ExtentKind, number>> = {
  data: 0,
  hole: NBD_STATE_HOLE | NBD_STATE_ZERO,
  zero: NBD_STATE_ZERO,
}

const ALLOCATION: MetaContext = {
  id: 1,
  name: 'base:allocation',
  query: (device, at, length) =>
    then(device.status(at, length), (extents) =>
      extents.map((extent) => ({
        at: extent.at,
        length: extent.length,
        value: STATE_OF[extent.kind],
      })),
    ),
}

const MAPPED = [
  { id: 2, name: 'qemu:allocation-depth', map: 'depth' },
  { id: 3, name: 'colotap:dirty', map: 'dirty' },
] as const

/** Every context that the device can answer. */
function contextsOf(device: BlockDevice): MetaContext[] {
  const contexts = [ALLOCATION]
  for (const { id, name, map } of MAPPED) {
    const lookUp = device.maps?.[map]
    if (lookUp !== undefined)
      contexts.push({ id, name, query: (_device, at, length) => lookUp(at, length) })
  }
  return contexts
}

/** What the queries of LIST_META_CONTEXT name; a namespace alone names all of it, and no query names everything. */
export function listed(device: BlockDevice, queries: readonly string[]): MetaContext[] {
  return contextsOf(device).filter(
    ({ name }) =>
      queries.length === 0 || queries.some((query) => query === name || query === spaceOf(name)),
  )
}

/** What the queries of SET_META_CONTEXT select, each once; wildcards and unknown names select nothing. */
export function selected(device: BlockDevice, queries: readonly string[]): MetaContext[] {
  return contextsOf(device).filter(({ name }) => queries.includes(name))
}

function spaceOf(name: string): string {
  return name.slice(0, name.indexOf(':') + 1)
}
