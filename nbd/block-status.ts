/**
 * Answers BLOCK_STATUS: asks the device for each selected context and writes the status chunks into the request's memory.
 *
 * Invariants:
 *  - A reply has exactly one chunk for each context asked for, of at least one descriptor; none reaches beyond the range
 *    that was asked for, so that every length fits its field.
 *  - The chunks fit the memory that was admitted for the request: what does not is left for the client's next one.
 */

import { assert } from '../core/assert.ts'
import type { BlockDevice, MapExtent } from '../core/block-device.ts'
import { then, type MaybePromise } from '../core/maybe-promise.ts'
import { KiB } from '../core/units.ts'
import type { MetaContext } from './meta-context.ts'
import { NBD_REPLY_FLAG_DONE, readOffset, writeOffset } from './protocol.ts'
import type { Asked, ChunkFormat } from './reply-format.ts'

/** Memory of a request for any number of descriptors, in bytes. */
const MANY = 16 * KiB
/** Of the payload that selects contexts: u64 length of the range, then u32 for each context (EXTENDED_HEADERS). */
const FILTER_HEADER_SIZE = 8
const FILTER_ENTRY_SIZE = 4

/** Bytes of memory that a request takes, for its payload first and its reply later. */
export function statusMemory(
  format: ChunkFormat,
  contexts: readonly MetaContext[],
  one: boolean,
): number {
  const { statusHeaderSize, descriptorSize } = format
  return one ? contexts.length * (statusHeaderSize + descriptorSize) : MANY
}

/** Whether a payload of so many bytes can be a choice among the selected contexts. */
export function isFilterLength(length: number, contexts: readonly MetaContext[]): boolean {
  const chosen = (length - FILTER_HEADER_SIZE) / FILTER_ENTRY_SIZE
  return Number.isInteger(chosen) && chosen >= 1 && chosen <= contexts.length
}

/** The payload's range length and contexts; undefined when it names one twice, or one that was not selected. */
export function readFilter(
  payload: Buffer,
  contexts: readonly MetaContext[],
): { readonly length: number; readonly contexts: readonly MetaContext[] } | undefined {
  const ids = new Set<number>()
  for (let at = FILTER_HEADER_SIZE; at < payload.length; at += FILTER_ENTRY_SIZE)
    ids.add(payload.readUInt32BE(at))
  const chosen = contexts.filter(({ id }) => ids.has(id))
  const named = (payload.length - FILTER_HEADER_SIZE) / FILTER_ENTRY_SIZE
  return chosen.length === named ? { length: readOffset(payload, 0), contexts: chosen } : undefined
}

export interface StatusQuery {
  readonly asked: Asked
  readonly at: number
  readonly length: number
  /** One descriptor for each context (REQ_ONE). */
  readonly one: boolean
  readonly contexts: readonly MetaContext[]
}

/** Writes the reply into `memory`; gives its length. @throws Fault of the device */
export function writeStatus(
  format: ChunkFormat,
  device: BlockDevice,
  query: StatusQuery,
  memory: Buffer,
): MaybePromise<number> {
  const { contexts, at, length } = query
  const share = Math.floor(memory.length / contexts.length)
  const room = Math.floor((share - format.statusHeaderSize) / format.descriptorSize)
  const next = (index: number, position: number): MaybePromise<number> => {
    const context = contexts[index]
    if (context === undefined) return position
    return then(context.query(device, at, length), (extents) => {
      const runs = merge(extents, at, length, query.one ? 1 : room)
      const last = index === contexts.length - 1
      const end = writeChunk(format, query.asked, context.id, runs, last, memory, position)
      return next(index + 1, end)
    })
  }
  return next(0, 0)
}

/** Extents cut to the range, neighbours alike made one, and no more than `most` of them. */
function merge(
  extents: readonly MapExtent[],
  at: number,
  length: number,
  most: number,
): MapExtent[] {
  const runs: MapExtent[] = []
  let position = at
  for (const extent of extents) {
    assert(extent.at === position && extent.length > 0, 'extents tile the range from its start')
    const end = Math.min(extent.at + extent.length, at + length)
    const last = runs.at(-1)
    if (last?.value === extent.value) runs[runs.length - 1] = { ...last, length: end - last.at }
    else if (runs.length === most) break
    else runs.push({ at: position, length: end - position, value: extent.value })
    position = end
    if (position === at + length) break
  }
  assert(runs.length > 0, 'a device says something of at least one byte')
  return runs
}

function writeChunk(
  format: ChunkFormat,
  asked: Asked,
  id: number,
  runs: readonly MapExtent[],
  last: boolean,
  memory: Buffer,
  start: number,
): number {
  const { kind, headerSize, statusType, statusHeaderSize, descriptorSize } = format
  const payload = statusHeaderSize - headerSize + runs.length * descriptorSize
  format.writeHeader(memory, start, last ? NBD_REPLY_FLAG_DONE : 0, statusType, asked, payload)
  memory.writeUInt32BE(id, start + headerSize)
  if (kind === 'extended') memory.writeUInt32BE(runs.length, start + headerSize + 4)
  let position = start + statusHeaderSize
  for (const { length, value } of runs) {
    if (kind === 'extended') {
      writeOffset(memory, length, position)
      writeOffset(memory, value, position + 8)
    } else {
      memory.writeUInt32BE(length, position)
      memory.writeUInt32BE(value, position + 4)
    }
    position += descriptorSize
  }
  return position
}
