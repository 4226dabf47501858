import fc from 'fast-check'
import t from 'tap'

import {
  ADMITTED,
  RequestDecoder,
  WAIT,
  type RequestHeader,
  type RequestSink,
  type RequestStyle,
} from '../../nbd/decoder.ts'
import { NBD_CMD_DISC, NBD_CMD_READ, NBD_CMD_WRITE } from '../../nbd/protocol.ts'
import { request } from './harness.ts'
import { BLOCK_STATUS, ask, askWith } from './wire.ts'

/** Notes what comes out; waits as often as told to before it admits. */
class Recorder implements RequestSink {
  readonly lines: string[] = []
  refuseAbove = Infinity
  waits = 0
  #payload = Buffer.alloc(0)

  admit(header: RequestHeader): number {
    if (this.waits > 0) {
      this.waits -= 1
      return WAIT
    }
    this.#payload = Buffer.alloc(0)
    return header.length > this.refuseAbove ? 22 : ADMITTED
  }

  payload(header: RequestHeader): Buffer {
    this.#payload = Buffer.alloc(header.payload)
    return this.#payload
  }

  execute(header: RequestHeader): boolean {
    this.lines.push(`${line(header)} ${this.#payload.toString('latin1')}`)
    return header.type !== NBD_CMD_DISC
  }

  refuse(header: RequestHeader, error: number): void {
    this.lines.push(`${line(header)} refused ${error}`)
  }
}

function line({ type, flags, cookieLow, offset, length }: RequestHeader): string {
  return `${type}/${flags} #${cookieLow} ${offset}+${length}`
}

const STREAM = Buffer.concat([
  request(NBD_CMD_READ, 1, 2 ** 40, 4096),
  request(NBD_CMD_WRITE, 2, 512, 5, 1),
  Buffer.from('hello'),
  request(NBD_CMD_WRITE, 3, 0, 0),
  request(NBD_CMD_WRITE, 4, 7, 40),
  Buffer.alloc(40, 'r'),
  request(99, 5, 0, 7),
  request(NBD_CMD_DISC, 6, 0, 0),
])
const EXPECTED = [
  '0/0 #1 1099511627776+4096 refused 22',
  '1/1 #2 512+5 hello',
  '1/0 #3 0+0 ',
  '1/0 #4 7+40 refused 22',
  '99/0 #5 0+7 ',
  '2/0 #6 0+0 ',
]

/** Pushes the pieces as a connection does: keeps what was not consumed, and pushes again after WAIT. */
function decode(
  pieces: readonly Buffer[],
  sink: RequestSink,
  style: RequestStyle = 'compact',
): RequestDecoder {
  const decoder = new RequestDecoder(sink, 1000, style)
  for (const piece of pieces) {
    let at = 0
    do at = decoder.push(piece, at, piece.length)
    while (!decoder.ended && (at < piece.length || decoder.waiting))
  }
  return decoder
}

void t.test('requests come out the same wherever the stream is cut in two', (t) => {
  for (let cut = 0; cut <= STREAM.length; cut += 1) {
    const sink = new Recorder()
    sink.refuseAbove = 39
    const decoder = decode([STREAM.subarray(0, cut), STREAM.subarray(cut)], sink)
    t.strictSame(sink.lines, EXPECTED, `cut at ${cut}`)
    t.ok(decoder.ended)
    t.equal(decoder.violation, undefined)
  }
  t.end()
})

const EXTENDED_STREAM = Buffer.concat([
  ask('extended', NBD_CMD_READ, 1, 2 ** 40, 2 ** 41),
  ask('extended', NBD_CMD_WRITE, 2, 512, 5, 1),
  Buffer.from('hello'),
  askWith(BLOCK_STATUS, 3, 7, Buffer.alloc(12, 'f')),
  askWith(99, 4, 7, Buffer.alloc(0)),
  ask('extended', NBD_CMD_READ, 5, 2n ** 64n - 1n, 2n ** 64n - 1n),
  ask('extended', NBD_CMD_DISC, 6, 0, 0),
])
const SATURATED = Number.MAX_SAFE_INTEGER
const EXTENDED_EXPECTED = [
  `0/0 #1 ${2 ** 40}+${2 ** 41} refused 22`,
  '1/33 #2 512+5 hello',
  '7/32 #3 7+12 ffffffffffff',
  '99/32 #4 7+0 ',
  `0/0 #5 ${SATURATED}+${SATURATED} refused 22`,
  '2/0 #6 0+0 ',
]

void t.test('extended requests come out the same wherever the stream is cut in two', (t) => {
  for (let cut = 0; cut <= EXTENDED_STREAM.length; cut += 1) {
    const sink = new Recorder()
    sink.refuseAbove = 39
    const pieces = [EXTENDED_STREAM.subarray(0, cut), EXTENDED_STREAM.subarray(cut)]
    const decoder = decode(pieces, sink, 'extended')
    t.strictSame(sink.lines, EXTENDED_EXPECTED, `cut at ${cut}`)
    t.ok(decoder.ended)
    t.equal(decoder.violation, undefined)
  }
  t.end()
})

void t.test('a header of the other style ends the stream', (t) => {
  const sink = new Recorder()
  t.match(decode([STREAM], sink, 'extended').violation, /magic/)
  t.match(decode([EXTENDED_STREAM], sink).violation, /magic/)
  t.strictSame(sink.lines, [])
  t.end()
})

void t.test('requests come out the same byte by byte, with waits at every request', (t) => {
  const sink = new Recorder()
  sink.refuseAbove = 39
  const admit = sink.admit.bind(sink)
  let calls = 0
  sink.admit = (header) => ((calls += 1) % 3 === 0 ? admit(header) : WAIT)
  decode(
    Array.from(STREAM, (_, at) => STREAM.subarray(at, at + 1)),
    sink,
  )
  t.strictSame(sink.lines, EXPECTED)
  t.end()
})

void t.test('nothing behind DISC is decoded', (t) => {
  const sink = new Recorder()
  decode([request(NBD_CMD_DISC, 1, 0, 0), request(NBD_CMD_READ, 2, 0, 1)], sink)
  t.equal(sink.lines.length, 1)
  t.end()
})

void t.test('a wrong magic ends the stream, and says so', (t) => {
  const bytes = request(NBD_CMD_READ, 1, 0, 1)
  bytes[3] = 0
  const sink = new Recorder()
  t.match(decode([bytes], sink).violation, /magic/)
  t.strictSame(sink.lines, [])
  t.end()
})

void t.test('any extended payload too long to drain ends the stream', (t) => {
  const sink = new Recorder()
  const long = askWith(BLOCK_STATUS, 1, 0, Buffer.alloc(1001))
  t.match(decode([long], sink, 'extended').violation, /1001 bytes/)
  t.end()
})

void t.test('a WRITE too long to drain ends the stream', (t) => {
  const sink = new Recorder()
  t.match(decode([request(NBD_CMD_WRITE, 1, 0, 1001)], sink).violation, /1001 bytes/)
  t.equal(decode([request(NBD_CMD_READ, 1, 0, 1001)], sink).violation, undefined)
  t.end()
})

void t.test('a large payload can be read straight into place, its beginning copied', (t) => {
  const sink = new Recorder()
  const decoder = new RequestDecoder(sink, 100_000)
  const header = request(NBD_CMD_WRITE, 1, 0, 40_000)
  decoder.push(Buffer.concat([header, Buffer.from('ab')]), 0, 30)
  t.equal(decoder.destination?.length, 39_998)
  decoder.destination?.fill('x', 0, 30_000)
  decoder.filled(30_000)
  t.equal(decoder.destination, undefined, 'the short rest is not worth a read of its own')
  decoder.push(Buffer.alloc(9_998, 'y'), 0, 9_998)
  const [text] = sink.lines
  t.equal(text, `1/0 #1 0+40000 ab${'x'.repeat(30_000)}${'y'.repeat(9_998)}`)
  t.ok(decoder.expectsLargePayload)
  t.end()
})

void t.test('random bytes never crash the decoder nor make it give a request twice', (t) => {
  fc.assert(
    fc.property(
      fc.constantFrom<RequestStyle>('compact', 'extended'),
      fc.array(
        fc.oneof(
          fc.uint8Array({ maxLength: 60 }).map((bytes) => Buffer.from(bytes)),
          fc
            .tuple(fc.nat(9), fc.nat(2 ** 16 - 1), fc.nat(), fc.nat(60))
            .map(([type, flags, at, length]) => request(type, 1, at, length, flags)),
          fc
            .tuple(fc.nat(9), fc.nat(2 ** 16 - 1), fc.nat(), fc.nat(60))
            .map(([type, flags, at, length]) => ask('extended', type, 1, at, length, flags)),
        ),
        { maxLength: 20 },
      ),
      (style, pieces) => {
        const whole = new Recorder()
        decode([Buffer.concat(pieces)], whole, style)
        const cut = new Recorder()
        decode(pieces, cut, style)
        t.strictSame(cut.lines, whole.lines)
      },
    ),
    { numRuns: 300 },
  )
  t.end()
})
