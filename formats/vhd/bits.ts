/** Sector bitmaps and batmaps: the first bit is the most significant one of the first byte. */

export function bitAt(map: Uint8Array, index: number): boolean {
  return ((map[index >>> 3] ?? 0) & (0x80 >>> (index & 7))) !== 0
}

export function setBit(map: Uint8Array, index: number): void {
  map[index >>> 3] = (map[index >>> 3] ?? 0) | (0x80 >>> (index & 7))
}

/** Sets the bits from `from` up to `to`, which is not included. */
export function setBits(map: Uint8Array, from: number, to: number): void {
  let index = from
  for (; index < to && (index & 7) !== 0; index += 1) setBit(map, index)
  const wholeEnd = to & ~7
  if (index < wholeEnd) {
    map.fill(0xff, index >>> 3, wholeEnd >>> 3)
    index = wholeEnd
  }
  for (; index < to; index += 1) setBit(map, index)
}

/** The first index from `from` on whose bit differs from the one at `from`, at most `to`. */
export function runEnd(map: Uint8Array, from: number, to: number): number {
  const bit = bitAt(map, from)
  const whole = bit ? 0xff : 0
  let index = from + 1
  while (index < to) {
    if ((index & 7) === 0 && map[index >>> 3] === whole) index += 8
    else if (bitAt(map, index) === bit) index += 1
    else return index
  }
  return to
}

/** Whether the first `count` bits are all set. */
export function allSet(map: Uint8Array, count: number): boolean {
  return count === 0 || (bitAt(map, 0) && runEnd(map, 0, count) === count)
}
