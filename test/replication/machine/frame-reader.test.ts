import fc from 'fast-check'
import t from 'tap'

import { Fault } from '../../../core/fault.ts'
import {
  encodeFrame,
  frame,
  HEADER_SIZE,
  MAX_PAYLOAD,
  type Frame,
} from '../../../replication/machine/frame.ts'
import { FrameReader } from '../../../replication/machine/frame-reader.ts'
import { anyFrame, kept } from './frames.ts'

/** Pushes each chunk in memory that is overwritten afterwards, as a socket's is. */
function read(chunks: readonly Buffer[]): Frame[] {
  const reader = new FrameReader()
  const frames: Frame[] = []
  for (const chunk of chunks) {
    const lent = Buffer.from(chunk)
    reader.push(lent, (arrived) => frames.push(kept(arrived)) > 0)
    lent.fill(0xdd)
  }
  return frames
}

/** Puts each chunk into the room that the reader offers, in as many parts as it needs. */
function readInPlace(chunks: readonly Buffer[]): Frame[] {
  const reader = new FrameReader()
  const frames: Frame[] = []
  for (const chunk of chunks) {
    for (let at = 0; at < chunk.length;) {
      const room = reader.room()
      const count = chunk.copy(room, 0, at)
      if (count === 0) throw new Error('there is always room')
      reader.filled(count, (arrived) => frames.push(kept(arrived)) > 0)
      at += count
    }
  }
  return frames
}

void t.test('frames survive a cut at every byte', (t) => {
  const written = [
    frame('hello', { payload: Buffer.from('hello') }),
    frame('heartbeat'),
    frame('write', { disk: 1, position: 512, payload: Buffer.alloc(512, 7) }),
    frame('checkpoint', { position: 1 }),
  ]
  const bytes = Buffer.concat(written.map(encodeFrame))
  for (let cut = 0; cut <= bytes.length; cut += 1)
    t.same(read([bytes.subarray(0, cut), bytes.subarray(cut)]), written, `cut at ${cut}`)
  t.same(read(Array.from(bytes, (_, at) => bytes.subarray(at, at + 1))), written, 'byte by byte')
  t.end()
})

void t.test('frames survive any cuts', (t) => {
  const lengths = fc.array(fc.integer({ min: 1, max: 300 }), { minLength: 1, maxLength: 40 })
  fc.assert(
    fc.property(fc.array(anyFrame, { maxLength: 8 }), lengths, (written, lengths) => {
      const bytes = Buffer.concat(written.map(encodeFrame))
      const chunks: Buffer[] = []
      let at = 0
      while (at < bytes.length) {
        const length = lengths[chunks.length % lengths.length]!
        chunks.push(bytes.subarray(at, at + length))
        at += length
      }
      t.same(read(chunks), written)
      t.same(readInPlace(chunks), written, 'in place')
    }),
  )
  t.end()
})

void t.test(
  'many large frames are read in place in few and large reads, and nothing is lost on the way',
  (t) => {
    const written = Array.from({ length: 40 }, (_, at) =>
      frame('write', {
        position: at * MAX_PAYLOAD,
        payload: Buffer.alloc(MAX_PAYLOAD - at * 512, at),
      }),
    )
    t.same(readInPlace([Buffer.concat(written.map(encodeFrame))]), written)
    const reader = new FrameReader()
    let largest = 0
    for (const bytes of written.map(encodeFrame))
      for (let at = 0; at < bytes.length;) {
        const room = reader.room()
        largest = Math.max(largest, room.length)
        const count = bytes.copy(room, 0, at)
        reader.filled(count, () => true)
        at += count
      }
    t.ok(largest > 2 * MAX_PAYLOAD, 'it reads more at once where there is more')
    t.ok(largest <= 4 * (HEADER_SIZE + MAX_PAYLOAD), 'and not without bounds')
    t.end()
  },
)

void t.test('before its first frame is whole, a peer gets no more memory than that needs', (t) => {
  const reader = new FrameReader()
  const bytes = encodeFrame(frame('write', { payload: Buffer.alloc(MAX_PAYLOAD) }))
  let largest = 0
  for (let at = 0; at < bytes.length - 1;) {
    const room = reader.room()
    largest = Math.max(largest, at + room.length)
    const count = bytes.copy(room, 0, at, bytes.length - 1)
    reader.filled(count, () => true)
    at += count
  }
  t.ok(largest <= HEADER_SIZE + MAX_PAYLOAD)
  t.end()
})

void t.test(
  'what comes after the frame at which the taker had enough is there for the next call',
  (t) => {
    const bytes = Buffer.concat(
      [1, 2, 3].map((position) => encodeFrame(frame('done', { position }))),
    )
    for (let cut = 0; cut <= bytes.length; cut += 1)
      for (const inPlace of [false, true]) {
        const reader = new FrameReader()
        const seen: number[] = []
        const one = ({ position }: Frame): boolean => {
          seen.push(position)
          return false
        }
        for (const chunk of [bytes.subarray(0, cut), bytes.subarray(cut)]) {
          if (inPlace) reader.filled(chunk.copy(reader.room()), one)
          else reader.push(Buffer.from(chunk), one)
        }
        while (!reader.goOn(one));
        t.same(seen, [1, 2, 3], `cut at ${cut}`)
      }
    t.end()
  },
)

void t.test('the largest frame survives, in pieces and in whole', (t) => {
  const written = [frame('write', { payload: Buffer.alloc(MAX_PAYLOAD, 3) }), frame('heartbeat')]
  const bytes = Buffer.concat(written.map(encodeFrame))
  for (const cut of [1, HEADER_SIZE, HEADER_SIZE + 1, 5000, HEADER_SIZE + MAX_PAYLOAD - 1])
    t.same(read([bytes.subarray(0, cut), bytes.subarray(cut)]), written)
  t.end()
})

void t.test('nothing is handed out after the taker has had enough', (t) => {
  const bytes = Buffer.concat([1, 2, 3].map((position) => encodeFrame(frame('done', { position }))))
  for (const cut of [0, 10, 40, bytes.length]) {
    const reader = new FrameReader()
    const seen: number[] = []
    const take = ({ position }: Frame): boolean => {
      seen.push(position)
      return position < 2
    }
    reader.push(bytes.subarray(0, cut), take)
    if (seen.length < 2) reader.push(bytes.subarray(cut), take)
    t.same(seen, [1, 2], `cut at ${cut}`)
  }
  t.end()
})

void t.test('bytes that are no frames end in a fault, and never in anything else', (t) => {
  fc.assert(
    fc.property(
      fc.array(anyFrame, { maxLength: 3 }),
      fc.uint8Array({ minLength: 6, maxLength: 100 }),
      fc.nat(),
      (written, noise, place) => {
        const good = Buffer.concat(written.map(encodeFrame))
        const chunks = [good, Buffer.from(noise), Buffer.alloc(HEADER_SIZE + MAX_PAYLOAD)]
        const cut = place % (good.length + noise.length)
        const bytes = Buffer.concat(chunks)
        const frames: Frame[] = []
        const reader = new FrameReader()
        t.throws(() => {
          for (const chunk of [bytes.subarray(0, cut), bytes.subarray(cut)])
            reader.push(chunk, (arrived) => frames.push(kept(arrived)) > 0)
        }, Fault)
        t.same(frames, written, 'and what came before is whole')
      },
    ),
  )
  t.end()
})

void t.test(
  'what is read into the room lies where it belongs, whatever was taken meanwhile',
  (t) => {
    const sizes = fc.array(fc.integer({ min: 0, max: 3000 }), { minLength: 1, maxLength: 40 })
    const choices = fc.infiniteStream(fc.nat(4000))
    fc.assert(
      fc.property(sizes, choices, (sizes, choices) => {
        const next = (): number => choices.next().value as number
        const written = sizes.map((size, at) =>
          frame('write', { position: at * 512, payload: Buffer.alloc(size, at) }),
        )
        const bytes = Buffer.concat(written.map(encodeFrame))
        let behind = 0
        const ends = written.map(({ payload }) => (behind += HEADER_SIZE + payload.length))
        const reader = new FrameReader()
        const frames: Frame[] = []
        // As a link that is paused and goes on at any time, while the kernel has its memory already.
        const take = (arrived: Frame): boolean => frames.push(kept(arrived)) > 0 && next() % 3 > 0
        for (let at = 0; at < bytes.length;) {
          const room = reader.room()
          while (next() % 2 === 0) reader.goOn(take)
          // Mostly up to the end of a frame: then nothing is held any more when it was taken.
          const end = next() % 4 === 0 ? at + 1 + next() : ends.find((each) => each > at)
          const count = bytes.copy(room, 0, at, Math.min(bytes.length, end ?? bytes.length))
          reader.filled(count, take)
          at += count
        }
        while (!reader.goOn(take));
        t.same(frames, written)
      }),
    )
    t.end()
  },
)
