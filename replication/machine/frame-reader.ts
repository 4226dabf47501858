/** Turns a stream of chunks, cut anywhere, into frames. */

import { decodeFrame, frame, HEADER_SIZE, MAX_PAYLOAD, payloadLength, type Frame } from './frame.ts'
import { StreamReader, type Framing } from './stream-reader.ts'

const FRAMES: Framing<Frame> = {
  largest: HEADER_SIZE + MAX_PAYLOAD,
  decode: decodeFrame,
  needed: (bytes, have) => (have < HEADER_SIZE ? HEADER_SIZE : HEADER_SIZE + payloadLength(bytes)),
}

export class FrameReader extends StreamReader<Frame> {
  constructor() {
    super(FRAMES, frame('heartbeat'))
  }
}
