/** Arbitrary frames, for the tests of what carries them. */

import fc from 'fast-check'

import { FRAME_TYPES, type Frame, type FrameType } from '../../../replication/machine/frame.ts'

export const anyFrame: fc.Arbitrary<Frame> = fc.record({
  type: fc.constantFrom(...(Object.keys(FRAME_TYPES) as FrameType[])),
  flags: fc.nat(255),
  position: fc.maxSafeNat(),
  extent: fc.maxSafeNat(),
  disk: fc.nat(0xffff),
  payload: fc.uint8Array({ maxLength: 200 }).map((bytes) => Buffer.from(bytes)),
})

/** A frame that does not change when its reader goes on. */
export function kept(frame: Readonly<Frame>): Frame {
  return { ...frame, payload: Buffer.from(frame.payload) }
}
