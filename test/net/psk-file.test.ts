import fc from 'fast-check'
import t from 'tap'

import { Fault } from '../../core/fault.ts'
import { parsePskFile } from '../../net/psk-file.ts'

const KEY = '00112233445566778899aabbccddeeff'
const WHERE = '/etc/keys.psk'

void t.test('a line is a user and a key', (t) => {
  const cases: [string, string, string[]][] = [
    ['as psktool writes it', `vm1:${KEY}\n`, ['vm1']],
    ['several', `vm1:${KEY}\nvm2:${KEY}\n`, ['vm1', 'vm2']],
    ['without the last end of line', `vm1:${KEY}`, ['vm1']],
    ['with ends of line of another system', `vm1:${KEY}\r\nvm2:${KEY}\r\n`, ['vm1', 'vm2']],
    ['in capitals', `vm1:${KEY.toUpperCase()}`, ['vm1']],
    ['with a colon in the name', `host:vm1:${KEY}`, ['host:vm1']],
    ['with a name in hexadecimal', `#766d31:${KEY}`, ['vm1']],
    ['between comments and empty lines', `# keys: two\n\nvm1:${KEY}\n#\n`, ['vm1']],
  ]
  for (const [name, text, users] of cases) {
    const keys = parsePskFile(text, WHERE)
    t.same([...keys.keys()], users, name)
    for (const key of keys.values()) t.equal(key.toString('hex'), KEY, name)
  }
  t.end()
})

void t.test('what is wrong is said with the file and the line, and without the key', (t) => {
  const cases: [string, RegExp][] = [
    ['', /has no key/],
    ['# nothing\n', /has no key/],
    [`vm1:${KEY}\nvm2`, /^line 2 .* is not username:hexkey/],
    [`:${KEY}`, /^line 1 .* has no name/],
    ['vm1:', /key of "vm1" that is not hexadecimal/],
    [`vm1:${KEY}g`, /key of "vm1" that is not hexadecimal/],
    [`vm1:${KEY}0`, /key of "vm1" that is not hexadecimal/],
    [`vm1:${KEY.slice(2)}`, /key of "vm1" with 15 bytes, not 16 to 256/],
    [`vm1:${'00'.repeat(257)}`, /with 257 bytes/],
    [`vm1:${KEY}\nvm1:${KEY}`, /^line 2 .* names "vm1" again/],
    [`${'x'.repeat(129)}:${KEY}`, /a name of more than 128 bytes/],
    [`a\u0000b:${KEY}`, /a name that is not text/],
    [`#ff:${KEY}`, /a name that is not text/],
  ]
  for (const [text, what] of cases) {
    const fault = { code: 'INVALID', what, where: WHERE, remedy: /psktool/ }
    t.throws(() => parsePskFile(text, WHERE), fault, text)
    try {
      parsePskFile(text, WHERE)
    } catch (error) {
      t.notMatch(String(error), KEY.slice(0, 8), text)
    }
  }
  t.end()
})

void t.test('whatever the file holds, it is keys or a fault', (t) => {
  const piece = fc.oneof(
    fc.string(),
    fc.string({ unit: 'binary' }),
    fc.constantFrom(':', '#', '\n', '\r\n', KEY, 'vm1', `vm2:${KEY}\n`, '#766d33:'),
  )
  fc.assert(
    fc.property(fc.array(piece, { maxLength: 12 }), (pieces) => {
      try {
        const keys = parsePskFile(pieces.join(''), WHERE)
        const sound = [...keys].every(([user, { length }]) => user !== '' && length >= 16)
        return keys.size > 0 && sound
      } catch (error) {
        return error instanceof Fault && error.code === 'INVALID'
      }
    }),
    { numRuns: 300 },
  )
  t.end()
})
