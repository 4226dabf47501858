/** The checksum of VHD's structures: the one's complement of the sum of all bytes. */

/** The checksum of `bytes`, in which the four bytes from `field` on, the checksum itself, count as zero. */
export function checksum(bytes: Uint8Array, field = -1): number {
  let sum = 0
  for (const byte of bytes) sum += byte
  if (field >= 0) for (const byte of bytes.subarray(field, field + 4)) sum -= byte
  return ~sum >>> 0
}
