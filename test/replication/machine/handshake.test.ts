import fc from 'fast-check'
import t from 'tap'

import { Fault } from '../../../core/fault.ts'
import { ACKS } from '../../../replication/group.ts'
import {
  decodeHello,
  decodeRefusal,
  encodeHello,
  encodeRefusal,
  verdictOn,
  type Hello,
  type Refusal,
} from '../../../replication/machine/handshake.ts'
import { PRIMARY } from './hellos.ts'

const size = fc.maxSafeNat()
const name = fc.string({ minLength: 1, maxLength: 50 })
const anyLine = fc.constantFrom('g1', 'g2', 'g3')
const few = fc.nat(3)
const anyHello: fc.Arbitrary<Hello> = fc.record({
  protocol: fc.record({ min: size, max: size }),
  group: name,
  mode: fc.constantFrom('colo', 'remus'),
  role: fc.constantFrom('primary', 'secondary'),
  replica: name,
  generation: fc.option(anyLine),
  history: fc.array(
    fc.record({ generation: anyLine, checkpoint: few, by: fc.constantFrom('write', 'promote') }),
    { maxLength: 3 },
  ),
  checkpoint: few,
  announced: fc.option(few),
  consistent: fc.boolean(),
  wrote: fc.boolean(),
  term: few,
  disks: fc.array(fc.record({ name, size }), { minLength: 1, maxLength: 5 }),
  capacity: size,
  durable: fc.boolean(),
  discard: fc.constantFrom(null, 'local', 'remote'),
  identical: fc.boolean(),
  features: fc.array(name, { maxLength: 3 }),
  ack: fc.constantFrom(...ACKS),
})

void t.test('a hello and a refusal are read as they were written', (t) => {
  fc.assert(fc.property(anyHello, (hello) => void t.same(decodeHello(encodeHello(hello)), hello)))
  const refusal: Refusal = { code: 'deposed', reason: 'because', term: 7 }
  t.same(decodeRefusal(encodeRefusal(refusal)), refusal)
  t.end()
})

void t.test('both sides reach the same verdict from what they read', (t) => {
  const reread = (hello: Hello): Hello => decodeHello(encodeHello(hello))
  fc.assert(
    fc.property(anyHello, anyHello, (source, target) => {
      t.same(verdictOn(reread(source), reread(target)), verdictOn(source, target))
    }),
  )
  t.end()
})

void t.test('a field that is missing or wrong is named', (t) => {
  const wrong: readonly (readonly [field: string, values: readonly unknown[]])[] = [
    ['protocol', [undefined, 1, null, []]],
    ['group', [undefined, '', 5, 'x'.repeat(5000)]],
    ['mode', [undefined, 'both', null]],
    ['role', [undefined, 'Primary']],
    ['replica', [undefined, '', null]],
    ['generation', [undefined, '', 1]],
    [
      'history',
      [undefined, {}, [1], [{ generation: 'g', checkpoint: 1, by: 'chance' }], Array(17).fill({})],
    ],
    ['checkpoint', [undefined, -1, 0.5, '1', 2 ** 53]],
    ['announced', [undefined, -1]],
    ['consistent', [undefined, 'yes', null]],
    ['wrote', [undefined, 1]],
    ['term', [undefined, -1]],
    [
      'disks',
      [undefined, [], {}, [1], [{ name: 'a' }], [{ name: '', size: 1 }], [{ name: 'a', size: -1 }]],
    ],
    ['capacity', [undefined, 'much']],
    ['discard', [undefined, 'both']],
    ['identical', [undefined, null]],
    ['ack', [null, 'all', 1]],
    ['features', [null, 'all', [1], [''], Array(65).fill('f')]],
  ]
  for (const [field, values] of wrong) {
    for (const value of values) {
      const payload = Buffer.from(JSON.stringify({ ...PRIMARY, [field]: value }))
      t.throws(() => decodeHello(payload), {
        code: 'PROTOCOL',
        message: new RegExp(`hello.${field}`),
      })
    }
  }
  t.throws(() => decodeRefusal(Buffer.from('{"code":"whim","reason":"x","term":1}')), {
    message: /refusal.code/,
  })
  t.throws(() => decodeRefusal(Buffer.from('{"code":"history","reason":"","term":1}')), {
    message: /refusal.reason/,
  })
  t.throws(() => decodeRefusal(Buffer.from('{"code":"history","reason":"x"}')), {
    message: /refusal.term/,
  })
  t.end()
})

void t.test('a peer of an older build has no features', (t) => {
  const { features, ...older } = { ...PRIMARY, features: ['speed'] }
  t.same(decodeHello(Buffer.from(JSON.stringify(older))).features, [])
  t.same(decodeHello(Buffer.from(JSON.stringify({ ...older, features }))).features, ['speed'])
  t.end()
})

void t.test('what a stranger sends is read or refused, whatever it is', (t) => {
  const decoded = (payload: Buffer): boolean => {
    try {
      decodeHello(payload)
      return true
    } catch (error) {
      if (error instanceof Fault && error.code === 'PROTOCOL') return false
      throw error
    }
  }
  fc.assert(fc.property(fc.json(), (text) => !decoded(Buffer.from(text))))
  fc.assert(fc.property(fc.uint8Array(), (bytes) => !decoded(Buffer.from(bytes))))
  const large = {
    ...PRIMARY,
    disks: Array.from({ length: 5000 }, (_, at) => ({ name: `d${at}`, size: 1 })),
  }
  t.notOk(decoded(encodeHello(large)), 'a hello that is too long')
  t.end()
})
