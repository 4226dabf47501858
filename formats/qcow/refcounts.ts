/**
 * Refcounts of every width in a refcount block (qcow2.rst, "Host cluster management"): big-endian where an entry has
 * whole bytes, from the least significant bit of a byte upwards where it has less.
 */

import { assert } from '../../core/assert.ts'

/** The entry as a number; a 64-bit one beyond 2^53 is only approximate, and absurd anyway. */
export function readRefcount(block: Buffer, bits: number, index: number): number {
  switch (bits) {
    case 8:
      return block.readUInt8(index)
    case 16:
      return block.readUInt16BE(index * 2)
    case 32:
      return block.readUInt32BE(index * 4)
    case 64:
      return block.readUInt32BE(index * 8) * 2 ** 32 + block.readUInt32BE(index * 8 + 4)
    default: {
      const bit = index * bits
      return (block.readUInt8(bit >>> 3) >>> (bit & 7)) & ((1 << bits) - 1)
    }
  }
}

export function writeRefcount(block: Buffer, bits: number, index: number, value: number): void {
  assert(value >= 0 && value <= mostRefcount(bits), 'a refcount fits its width')
  switch (bits) {
    case 8:
      block.writeUInt8(value, index)
      return
    case 16:
      block.writeUInt16BE(value, index * 2)
      return
    case 32:
      block.writeUInt32BE(value, index * 4)
      return
    case 64:
      block.writeUInt32BE(Math.floor(value / 2 ** 32), index * 8)
      block.writeUInt32BE(value % 2 ** 32, index * 8 + 4)
      return
    default: {
      const bit = index * bits
      const shift = bit & 7
      const mask = ((1 << bits) - 1) << shift
      const byte = block.readUInt8(bit >>> 3)
      block.writeUInt8((byte & ~mask) | (value << shift), bit >>> 3)
    }
  }
}

/** The largest count that an entry holds and that a number holds exactly. */
export function mostRefcount(bits: number): number {
  return bits >= 53 ? Number.MAX_SAFE_INTEGER : 2 ** bits - 1
}

/** The first index in [from, to) whose count is zero, or `to`. */
export function firstFree(block: Buffer, bits: number, from: number, to: number): number {
  let index = from
  while (index < to && readRefcount(block, bits, index) !== 0) index += 1
  return index
}

/** Bytes [from, to) of a block that the entries [first, last] touch. */
export function refcountBytes(
  bits: number,
  first: number,
  last: number,
): { readonly from: number; readonly to: number } {
  return { from: Math.floor((first * bits) / 8), to: Math.floor((last * bits + bits - 1) / 8) + 1 }
}
