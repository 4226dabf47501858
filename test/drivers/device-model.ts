/**
 * The behaviour that every writable disk has, checked against the simplest one there is: an array of bytes.
 * Requests of a batch run at the same time and do not overlap; batches follow each other.
 */

import assert from 'node:assert/strict'

import fc from 'fast-check'

import { FUA, NO_HOLE, type BlockDevice, type Extent } from '../../core/block-device.ts'

/** What a trim may leave: zeroes on every driver of this project that trims. */
export type Request =
  | { readonly kind: 'read' | 'trim' | 'status'; readonly at: number; readonly length: number }
  | {
      readonly kind: 'write'
      readonly at: number
      readonly length: number
      readonly seed: number
      readonly flags: number
    }
  | { readonly kind: 'zero'; readonly at: number; readonly length: number; readonly flags: number }
  | { readonly kind: 'flush' }
  | { readonly kind: 'resize'; readonly size: number }

export interface ModelOptions {
  /** Bytes: the largest size that a resize gives, and the size at the start. */
  readonly size: number
  /** Sizes are multiples of it. */
  readonly unit: number
  readonly runs: number
  /** Whether to try other sizes; yes, unless said otherwise. */
  readonly resizes?: boolean
}

/** Runs random batches of requests on `device` and on an array, and compares what is read. */
export async function checkAgainstModel(device: BlockDevice, options: ModelOptions): Promise<void> {
  const batches = fc.array(fc.array(request(options), { minLength: 1, maxLength: 6 }), {
    minLength: 1,
    maxLength: 8,
  })
  await fc.assert(
    fc.asyncProperty(batches, async (given) => {
      if (device.can.resize && options.resizes !== false) await device.resize(options.size)
      await device.zero(0, device.geometry.size, 0)
      let model: Buffer = Buffer.alloc(device.geometry.size)
      for (const batch of given) {
        const apart = withoutOverlaps(batch, model.length)
        await Promise.all(apart.map(async (request) => perform(device, request, model)))
        for (const request of batch) {
          if (request.kind === 'resize' && options.resizes !== false)
            model = await resize(device, model, request.size)
        }
        const all = Buffer.alloc(model.length, 0xee)
        await device.read(all, 0)
        assert.ok(all.equals(model), `the disk differs at byte ${firstDifference(all, model)}`)
      }
    }),
    { numRuns: options.runs, endOnFailure: true },
  )
}

function request({ size, unit }: ModelOptions): fc.Arbitrary<Request> {
  const range = fc
    .tuple(fc.nat(size - 1), fc.oneof(fc.integer({ min: 1, max: 600 }), fc.nat(size)))
    .map(([at, length]) => ({ at, length: Math.max(1, Math.min(length, size - at)) }))
  const flags = fc.constantFrom(0, 0, FUA, NO_HOLE)
  return fc.oneof(
    range.map((place) => ({ kind: 'read' as const, ...place })),
    range.map((place) => ({ kind: 'trim' as const, ...place })),
    range.map((place) => ({ kind: 'status' as const, ...place })),
    fc
      .tuple(range, fc.integer({ min: 1, max: 255 }), fc.constantFrom(0, 0, 0, FUA))
      .map(([place, seed, chosen]) => ({ kind: 'write' as const, ...place, seed, flags: chosen })),
    fc
      .tuple(range, flags)
      .map(([place, chosen]) => ({ kind: 'zero' as const, ...place, flags: chosen })),
    fc.constant({ kind: 'flush' as const }),
    fc
      .integer({ min: 1, max: Math.floor(size / unit) })
      .map((units) => ({ kind: 'resize' as const, size: units * unit })),
  )
}

/** The requests of a batch that fit the disk and touch no range of an earlier one: their order has no meaning. */
function withoutOverlaps(batch: readonly Request[], size: number): Request[] {
  const taken: { at: number; length: number }[] = []
  return batch.filter((request) => {
    if (request.kind === 'resize') return false
    if (request.kind === 'flush') return true
    const { at, length } = request
    if (at + length > size) return false
    if (taken.some((other) => at < other.at + other.length && other.at < at + length)) return false
    taken.push({ at, length })
    return true
  })
}

async function perform(device: BlockDevice, request: Request, model: Buffer): Promise<void> {
  switch (request.kind) {
    case 'read': {
      const { at, length } = request
      const into = Buffer.alloc(length, 0xee)
      await device.read(into, at)
      assert.ok(into.equals(model.subarray(at, at + length)), `read of ${length} at ${at} differs`)
      return
    }
    case 'write': {
      const { at, length, seed, flags } = request
      const from = pattern(length, seed)
      from.copy(model, at)
      await device.write(from, at, flags)
      return
    }
    case 'zero':
      model.fill(0, request.at, request.at + request.length)
      return device.zero(request.at, request.length, request.flags)
    case 'trim': {
      const { at, length } = request
      await device.trim(at, length, 0)
      // What a trimmed range reads as is the driver's choice, but each byte is either kept or zero.
      const after = Buffer.alloc(length)
      await device.read(after, at)
      for (const [index, byte] of after.entries()) {
        assert.ok(byte === 0 || byte === model[at + index], `a trim made up byte ${at + index}`)
      }
      after.copy(model, at)
      return
    }
    case 'status':
      checkExtents(await device.status(request.at, request.length), request, model)
      return
    case 'flush':
      return device.flush()
    case 'resize':
      throw new Error('a resize runs alone')
  }
}

function checkExtents(
  extents: readonly Extent[],
  { at, length }: { at: number; length: number },
  model: Buffer,
): void {
  assert.ok(extents.length > 0, 'status covers something')
  let position = at
  for (const extent of extents) {
    assert.equal(extent.at, position, 'extents tile the range')
    assert.ok(extent.length > 0, 'an extent is not empty')
    position += extent.length
    if (extent.kind === 'data') continue
    const content = model.subarray(extent.at, position)
    assert.ok(
      content.every((byte) => byte === 0),
      'what is called zero reads as zeroes',
    )
  }
  assert.ok(position <= at + length, 'extents stay within the range')
}

async function resize(device: BlockDevice, model: Buffer, size: number): Promise<Buffer> {
  if (!device.can.resize) return model
  await device.resize(size)
  assert.equal(device.geometry.size, size)
  const resized = Buffer.alloc(size)
  model.copy(resized)
  return resized
}

/** Bytes that differ from their neighbours and are never zero. */
export function pattern(length: number, seed: number): Buffer {
  const bytes = Buffer.alloc(length)
  for (let index = 0; index < length; index += 1) bytes[index] = ((seed + index) % 255) + 1
  return bytes
}

function firstDifference(a: Buffer, b: Buffer): number {
  return a.findIndex((byte, index) => byte !== b[index])
}
