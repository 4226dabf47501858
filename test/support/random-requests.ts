/** Random requests of odd sizes over NBD, several in flight, against an array of bytes. */

import assert from 'node:assert/strict'

import { FUA, NO_HOLE } from '../../core/block-device.ts'
import type { NbdClient } from '../../nbd/client.ts'
import { below, seededRandom, type Random } from '../../core/seeded-random.ts'

const IN_FLIGHT = 8
const LONGEST = 96 * 1024

/** Runs `count` requests on the disk, and keeps `model` what the disk must be. Trimmed ranges may keep their bytes or not. */
export async function runRandomRequests(
  client: NbdClient,
  model: Buffer,
  count: number,
  seed: number,
): Promise<void> {
  const random = seededRandom(seed)
  const busy: { at: number; end: number }[] = []
  const perform = async (): Promise<void> => {
    const { at, length } = place(random, model.length)
    if (busy.some((other) => at < other.end && other.at < at + length)) return
    const range = { at, end: at + length }
    busy.push(range)
    try {
      await request(client, model, at, length, random)
    } finally {
      busy.splice(busy.indexOf(range), 1)
    }
  }
  const lane = async (): Promise<void> => {
    while (count > 0) {
      count -= 1
      await perform()
    }
  }
  await Promise.all(Array.from({ length: IN_FLIGHT }, lane))
  await client.flush()
}

/** Half of the requests are whole sectors, most are short. */
function place(random: Random, size: number): { at: number; length: number } {
  const unit = random() < 0.5 ? 512 : 1
  const most = random() < 0.8 ? 8192 : LONGEST
  const at = Math.floor(below(random, size) / unit) * unit
  const length = Math.max(1, Math.floor((1 + below(random, most)) / unit)) * unit
  return { at, length: Math.min(length, size - at) }
}

async function request(
  client: NbdClient,
  model: Buffer,
  at: number,
  length: number,
  random: Random,
): Promise<void> {
  const expected = model.subarray(at, at + length)
  const kind = random()
  if (kind < 0.45) {
    const bytes = Buffer.alloc(length)
    for (let index = 0; index < length; index += 1) bytes[index] = 1 + below(random, 255)
    await client.write(bytes, at, random() < 0.02 ? FUA : 0)
    bytes.copy(expected)
  } else if (kind < 0.6) {
    await client.zero(at, length, random() < 0.3 ? NO_HOLE : 0)
    expected.fill(0)
  } else if (kind < 0.7) {
    await client.trim(at, length)
    const found = Buffer.alloc(length)
    await client.read(found, at)
    for (const [index, byte] of found.entries())
      assert.ok(byte === 0 || byte === expected[index], `a trim made up byte ${at + index}`)
    found.copy(expected)
  } else if (kind < 0.72) {
    await client.flush()
  } else {
    const found = Buffer.alloc(length)
    await client.read(found, at)
    assert.ok(found.equals(expected), `the disk differs within ${length} bytes at ${at}`)
  }
}
