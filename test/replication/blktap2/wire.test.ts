import fc from 'fast-check'
import t from 'tap'

import { Fault } from '../../../core/fault.ts'
import { SECTOR } from '../../../core/units.ts'
import {
  DoneReader,
  encodeWriteHeader,
  MOST_SENT,
  MOST_TAKEN,
  RequestReader,
  WRITE_HEADER_SIZE,
} from '../../../replication/blktap2/wire.ts'
import { cutAt, oldCommit, oldSubmit, oldWrite } from './old-wire.ts'

type Seen = ['wreq', number, Buffer] | ['sreq'] | ['creq']

/** Pushes each chunk in memory that is overwritten afterwards, as a socket's is. */
function read(chunks: readonly Buffer[]): Seen[] {
  const reader = new RequestReader()
  const seen: Seen[] = []
  for (const chunk of chunks) {
    const lent = Buffer.from(chunk)
    reader.push(lent, ({ op, position, data }) => {
      seen.push(op === 'wreq' ? [op, position, Buffer.from(data)] : [op])
      return true
    })
    lent.fill(0xdd)
  }
  return seen
}

const bytesOf = (request: Seen): Buffer => {
  if (request[0] === 'wreq') return oldWrite(request[1] / SECTOR, request[2])
  return request[0] === 'sreq' ? oldSubmit() : oldCommit()
}

const anyRequest: fc.Arbitrary<Seen> = fc.oneof(
  fc.constant<Seen>(['sreq']),
  fc.constant<Seen>(['creq']),
  fc
    .tuple(fc.maxSafeNat(), fc.nat(12), fc.nat(255))
    .map(([sector, count, byte]): Seen => [
      'wreq',
      Math.floor(sector / SECTOR) * SECTOR,
      Buffer.alloc(count * SECTOR, byte),
    ]),
)

void t.test('the header of a write is what the old code puts there', (t) => {
  const cases: [number, number, string][] = [
    [0, 4096, '77726571 08000000 0000000000000000'],
    [512, 512, '77726571 01000000 0100000000000000'],
    [2 ** 41, 1024, '77726571 02000000 0000000001000000'],
    [(2 ** 44 - 1) * SECTOR, 512, '77726571 01000000 ffffffffff0f0000'],
  ]
  for (const [position, length, hex] of cases) {
    const header = Buffer.alloc(WRITE_HEADER_SIZE)
    encodeWriteHeader(header, 0, position, length)
    t.equal(header.toString('hex'), hex.replaceAll(' ', ''))
    const [back] = read([header, Buffer.alloc(length, 5)])
    t.same(back, ['wreq', position, Buffer.alloc(length, 5)])
  }
  t.end()
})

void t.test('requests survive a cut at every byte', (t) => {
  const written: Seen[] = [
    ['creq'],
    ['wreq', 512, Buffer.alloc(1024, 7)],
    ['sreq'],
    ['wreq', 0, Buffer.alloc(0)],
    ['creq'],
  ]
  const bytes = Buffer.concat(written.map(bytesOf))
  for (let cut = 0; cut <= bytes.length; cut += 1)
    t.same(read([bytes.subarray(0, cut), bytes.subarray(cut)]), written, `cut at ${cut}`)
  t.same(read(cutAt(bytes, [1])), written, 'byte by byte')
  t.end()
})

void t.test('requests survive any cuts', (t) => {
  const lengths = fc.array(fc.integer({ min: 1, max: 9000 }), { minLength: 1, maxLength: 40 })
  fc.assert(
    fc.property(fc.array(anyRequest, { maxLength: 8 }), lengths, (written, lengths) => {
      t.same(read(cutAt(Buffer.concat(written.map(bytesOf)), lengths)), written)
    }),
  )
  t.end()
})

void t.test('what the old receiver refuses is read whole, and the stream stays in step', (t) => {
  for (const length of [MOST_SENT, MOST_SENT + SECTOR, 44 * 1024, MOST_TAKEN]) {
    const written: Seen[] = [['wreq', 4096, Buffer.alloc(length, 3)], ['creq']]
    const bytes = Buffer.concat(written.map(bytesOf))
    for (const lengths of [[bytes.length], [1000], [15, 16, 17]])
      t.same(read(cutAt(bytes, lengths)), written)
  }
  t.end()
})

void t.test('what is no request ends in a fault, and what came before it is whole', (t) => {
  const cases: [string, Buffer, RegExp][] = [
    ['one sector too many', oldWrite(0, Buffer.alloc(MOST_TAKEN + SECTOR)), /262656 bytes is more/],
    ['a length that lies', Buffer.from('77726571ffffffff', 'hex'), /more than 262144/],
    [
      'a sector beyond 2^44',
      Buffer.from('77726571010000000000000000100000', 'hex'),
      /beyond the end/,
    ],
    ['a read', Buffer.from('rreq'), /"rreq" is no request.*wire=blktap2/],
    ['a frame of ours', Buffer.from('00000000c0100100', 'hex'), /no request/],
    ['zeroes', Buffer.alloc(100), /no request/],
  ]
  for (const [what, bytes, message] of cases) {
    const whole = Buffer.concat([oldCommit(), bytes, Buffer.alloc(16)])
    for (const lengths of [[whole.length], [1], [7]]) {
      const reader = new RequestReader()
      const ops: string[] = []
      t.throws(
        () => {
          for (const chunk of cutAt(whole, lengths))
            reader.push(chunk, ({ op }) => ops.push(op) > 0)
        },
        { code: 'PROTOCOL', message },
        what,
      )
      t.same(ops, ['creq'])
    }
  }
  t.end()
})

void t.test('noise ends in a fault or waits for more, and never in anything else', (t) => {
  const outcomes = new Set<string>()
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 300 }), fc.boolean(), (noise, asWrite) => {
      const reader = new RequestReader()
      const bytes = asWrite ? Buffer.concat([Buffer.from('wreq'), noise]) : Buffer.from(noise)
      try {
        reader.push(bytes, () => true)
        outcomes.add('waits')
      } catch (error) {
        if (!(error instanceof Fault)) throw error
        outcomes.add('fault')
      }
    }),
  )
  t.same([...outcomes].sort(), ['fault', 'waits'])
  t.end()
})

void t.test('only "done" is an answer, however it is cut', (t) => {
  const dones = (chunks: readonly Buffer[]): number => {
    const reader = new DoneReader()
    let count = 0
    for (const chunk of chunks) reader.push(chunk, () => (count += 1) > 0)
    return count
  }
  for (const length of [1, 3, 4, 5, 12])
    t.equal(dones(cutAt(Buffer.from('donedonedone'), [length])), 3)
  t.throws(() => dones([Buffer.from('donefail')]), { code: 'PROTOCOL', message: /"fail"/ })
  t.throws(() => dones([Buffer.from('SS'), Buffer.from('H-2.0')]), { message: /"SSH-"/ })
  t.end()
})
