import fc from 'fast-check'
import t from 'tap'

import { AssertionFailure } from '../../../core/assert.ts'
import {
  decodeFrame,
  encodeFrame,
  encodeHeader,
  frame,
  HEADER_SIZE,
  MAX_PAYLOAD,
  payloadLength,
} from '../../../replication/machine/frame.ts'
import { anyFrame } from './frames.ts'

void t.test('a frame is read as it was written', (t) => {
  fc.assert(
    fc.property(anyFrame, fc.nat(40), (written, at) => {
      const bytes = Buffer.concat([Buffer.alloc(at, 0xee), encodeFrame(written)])
      const out = frame('heartbeat')
      t.equal(decodeFrame(bytes, at, bytes.length, out), bytes.length)
      t.same(out, written)
    }),
  )
  t.end()
})

void t.test('a header written apart from its payload is the same', (t) => {
  fc.assert(
    fc.property(anyFrame, (written) => {
      const header = Buffer.alloc(HEADER_SIZE)
      encodeHeader(header, 0, written, false)
      t.same(Buffer.concat([header, written.payload]), encodeFrame(written))
    }),
  )
  t.end()
})

void t.test('the header stands as it is documented', (t) => {
  const bytes = encodeFrame(
    frame('write', {
      flags: 1,
      position: 0x1_0000_0200,
      extent: 7,
      disk: 3,
      payload: Buffer.from('abcd'),
    }),
  )
  t.equal(
    bytes.toString('hex', 4),
    'c010' +
      '03' +
      '01' +
      '0000000100000200' +
      '0000000000000007' +
      '00000004' +
      '0003' +
      '0000' +
      '61626364',
  )
  t.equal(payloadLength(bytes), 4)
  t.end()
})

void t.test('an incomplete frame is waited for, whatever part of it is there', (t) => {
  const bytes = encodeFrame(frame('write', { payload: Buffer.from('payload') }))
  for (let end = 0; end < bytes.length; end += 1)
    t.equal(decodeFrame(bytes, 0, end, frame('heartbeat')), -1, `${end} bytes`)
  t.end()
})

void t.test('no flipped bit passes', (t) => {
  const original = encodeFrame(frame('write', { position: 512, payload: Buffer.from('payload') }))
  for (let bit = 0; bit < original.length * 8; bit += 1) {
    const bytes = Buffer.from(original)
    bytes.writeUInt8(bytes.readUInt8(bit >> 3) ^ (1 << (bit & 7)), bit >> 3)
    let taken = 0
    try {
      taken = decodeFrame(bytes, 0, bytes.length, frame('heartbeat'))
    } catch (error) {
      t.match(error, { name: 'Fault', code: 'PROTOCOL' }, `bit ${bit}`)
    }
    // A longer length is waited for: what comes then does not fit the checksum.
    t.ok(taken <= 0, `bit ${bit} is noticed`)
  }
  t.end()
})

void t.test('what no frame can be is refused', (t) => {
  const withField = (write: (bytes: Buffer) => void): Buffer => {
    const bytes = encodeFrame(frame('heartbeat'))
    write(bytes)
    return bytes
  }
  const cases: readonly [string, RegExp, Buffer][] = [
    ['other bytes', /not a replication frame/, Buffer.from('GET / HTTP/1.1\r\n')],
    [
      'a payload beyond the limit',
      /a payload of 262145 bytes/,
      withField((bytes) => bytes.writeUInt32BE(MAX_PAYLOAD + 1, 24)),
    ],
    ['a wrong checksum', /wrong checksum/, withField((bytes) => bytes.writeUInt32BE(1, 0))],
  ]
  for (const [what, message, bytes] of cases)
    t.throws(
      () => decodeFrame(bytes, 0, bytes.length, frame('done')),
      { code: 'PROTOCOL', message },
      what,
    )
  t.end()
})

void t.test(
  'a number beyond 2^53 or an unknown type is refused even with a right checksum',
  async (t) => {
    const { crc32 } = await import('../../../core/crc32.ts')
    const cases: readonly [RegExp, (bytes: Buffer) => void][] = [
      [/a number beyond 2\^53/, (bytes) => bytes.writeUInt32BE(2 ** 21, 8)],
      [/a number beyond 2\^53/, (bytes) => bytes.writeUInt32BE(2 ** 21, 16)],
      [/unknown frame type 0/, (bytes) => bytes.writeUInt8(0, 6)],
      [/unknown frame type 99/, (bytes) => bytes.writeUInt8(99, 6)],
    ]
    for (const [message, write] of cases) {
      const bytes = encodeFrame(frame('heartbeat'))
      write(bytes)
      bytes.writeUInt32BE(crc32(bytes.subarray(4)), 0)
      t.throws(() => decodeFrame(bytes, 0, bytes.length, frame('done')), {
        code: 'PROTOCOL',
        message,
      })
    }
  },
)

void t.test('what must not be sent is our own bug', (t) => {
  const payload = Buffer.alloc(MAX_PAYLOAD + 1)
  for (const wrong of [
    frame('write', { payload }),
    frame('done', { position: -1 }),
    frame('done', { extent: 2 ** 53 }),
    frame('done', { extent: 0.5 }),
  ])
    t.throws(() => encodeFrame(wrong), AssertionFailure)
  t.end()
})
