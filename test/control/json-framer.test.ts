import assert from 'node:assert/strict'

import fc from 'fast-check'
import t from 'tap'

import { JsonFramer, type Framed } from '../../control/json-framer.ts'

const MAX = 100

/** Everything that comes out for these chunks, texts as they are and refusals in angle brackets. */
function frame(...chunks: (string | Buffer)[]): string[] {
  const framer = new JsonFramer(MAX)
  const out: Framed[] = []
  for (const chunk of chunks) out.push(...framer.push(Buffer.from(chunk as string)))
  out.push(...framer.finish())
  return out.map((framed) => (framed.kind === 'text' ? framed.text : `<${framed.reason}>`))
}

const LONG = '<a request longer than 100 bytes>'
const DEEP = '<JSON nested deeper than 64>'
const BYTES = '<a request that is not valid UTF-8>'

void t.test('a text ends where its object closes, or with its line', (t) => {
  const cases: [string | Buffer, string[]][] = [
    ['{"a":1}\n', ['{"a":1}']],
    ['{"a":1}\r\n{"b":2}\r\n', ['{"a":1}', '{"b":2}']],
    ['{"a":1}{"b":[{}]} [1]', ['{"a":1}', '{"b":[{}]}', '[1]']],
    ['{"a":"}{\\"}"}\n', ['{"a":"}{\\"}"}']],
    ['{"a":"\\\\"}{}', ['{"a":"\\\\"}', '{}']],
    ['{"a":\n1}\n', ['{"a":', '1}']],
    ['{"never closed\n{"b":2}', ['{"never closed', '{"b":2}']],
    ['hello {"a":1} world\n{}', ['hello {"a":1} world', '{}']],
    ['}}]]\n{}', ['}}]]', '{}']],
    ['\n\r\n \t\n{}\n\n', ['{}']],
    ['', []],
    ['{"cut', ['{"cut']],
    [`{"a":"${'x'.repeat(92)}"}{}`, [`{"a":"${'x'.repeat(92)}"}`, '{}']],
    [`{"a":"${'x'.repeat(93)}"}{}\n{}`, [LONG, '{}']],
    [`{"a":"${'x'.repeat(500)}\n{}`, [LONG, '{}']],
    [`${' '.repeat(500)}{}`, ['{}']],
    [`${'['.repeat(65)}\n{}`, [DEEP, '{}']],
    [`${'['.repeat(64)}\n{}`, ['['.repeat(64), '{}']],
    [Buffer.from([0x7b, 0xff, 0x7d, 0x0a, 0x7b, 0x7d]), [BYTES, '{}']],
    ['{"ä":"€"}', ['{"ä":"€"}']],
  ]
  for (const [input, expected] of cases) t.same(frame(input), expected, JSON.stringify(input))
  t.end()
})

void t.test('how the stream is cut into chunks changes nothing', (t) => {
  const piece = fc.oneof(
    fc.json({ maxDepth: 3 }),
    fc.constantFrom(
      '\n',
      '\r\n',
      ' ',
      '{',
      '}',
      '"',
      '\\',
      '[',
      ']',
      'x'.repeat(60),
      '[['.repeat(40),
    ),
    fc.uint8Array({ maxLength: 8 }).map((bytes) => Buffer.from(bytes)),
  )
  fc.assert(
    fc.property(fc.array(piece), fc.array(fc.nat(40), { minLength: 1 }), (pieces, cuts) => {
      const whole = Buffer.concat(pieces.map((each) => Buffer.from(each as string)))
      const chunks: Buffer[] = []
      for (let at = 0, turn = 0; at < whole.length; turn += 1) {
        const length = 1 + cuts[turn % cuts.length]!
        chunks.push(whole.subarray(at, at + length))
        at += length
      }
      assert.deepEqual(frame(...chunks), frame(whole))
    }),
  )
  t.end()
})
