/** CRC-32 (IEEE 802.3, as zlib's): Node's own where it has it (>= 20.15), a table otherwise. */

import * as zlib from 'node:zlib'

type Crc32 = (bytes: Uint8Array, seed?: number) => number

/** The checksum of `bytes`, continuing from `seed` where a message comes in pieces. An unsigned 32-bit number. */
export const crc32: Crc32 =
  typeof (zlib as { crc32?: Crc32 }).crc32 === 'function' ? zlib.crc32 : crc32ByTable

const TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let value = byte
  for (let bit = 0; bit < 8; bit += 1)
    value = (value & 1) === 1 ? (value >>> 1) ^ 0xedb88320 : value >>> 1
  return value
})

/** The same in plain TypeScript; exported so that the two are compared in tests. */
export function crc32ByTable(bytes: Uint8Array, seed = 0): number {
  let value = ~seed
  for (const byte of bytes) value = (TABLE[(value ^ byte) & 0xff] ?? 0) ^ (value >>> 8)
  return ~value >>> 0
}
