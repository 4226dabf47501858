import fc from 'fast-check'
import t from 'tap'

import { Fault } from '../../../core/fault.ts'
import {
  decodeHello,
  decodeRefusal,
  encodeHello,
  encodeRefusal,
  objection,
  type Hello,
  type Refusal,
} from '../../../replication/machine/handshake.ts'

const PRIMARY: Hello = {
  protocol: { min: 1, max: 1 },
  group: 'vm',
  mode: 'colo',
  role: 'primary',
  incarnation: 'p1',
  partner: null,
  checkpoint: 0,
  announced: 0,
  term: 1,
  disks: [
    { name: 'a', size: 4096 },
    { name: 'b', size: 8192 },
  ],
  capacity: 0,
  durable: false,
}
const SECONDARY: Hello = { ...PRIMARY, role: 'secondary', incarnation: 's1', capacity: 65536 }

/** A pair that has replicated up to checkpoint 5; the primary has announced 7. */
const OLD_PRIMARY: Hello = { ...PRIMARY, partner: 's1', checkpoint: 5, announced: 7 }
const OLD_SECONDARY: Hello = { ...SECONDARY, partner: 'p1', checkpoint: 5, announced: 6 }

type Verdict = 'replicate' | readonly [code: string, reason: RegExp]

const VERDICTS: readonly (readonly [
  what: string,
  primary: Partial<Hello>,
  secondary: Partial<Hello>,
  verdict: Verdict,
])[] = [
  ['partners of old', {}, {}, 'replicate'],
  ['disks listed in another order', {}, { disks: [...PRIMARY.disks].reverse() }, 'replicate'],
  ['a secondary that committed what it could not confirm', {}, { checkpoint: 7 }, 'replicate'],
  [
    'versions that overlap',
    { protocol: { min: 1, max: 3 } },
    { protocol: { min: 2, max: 9 } },
    'replicate',
  ],
  [
    'a newer peer only',
    {},
    { protocol: { min: 2, max: 3 } },
    ['version', /speaks 1-1, the secondary 2-3/],
  ],
  [
    'an older peer only',
    { protocol: { min: 2, max: 3 } },
    {},
    ['version', /speaks 2-3, the secondary 1-1/],
  ],
  [
    'another group',
    { group: 'x' },
    {},
    ['configuration', /groups differ: primary "x", secondary "vm"/],
  ],
  [
    'another mode',
    {},
    { mode: 'remus' },
    ['configuration', /modes differ: primary colo, secondary remus/],
  ],
  [
    'a secondary that dials',
    { role: 'secondary' },
    {},
    ['configuration', /connecting side is secondary/],
  ],
  [
    'an active copy that dials',
    { role: 'active' },
    {},
    ['configuration', /connecting side is active/],
  ],
  ['two primaries', {}, { role: 'primary' }, ['configuration', /both sides are primaries/]],
  [
    'a disk less on the secondary',
    {},
    { disks: PRIMARY.disks.slice(1) },
    ['configuration', /"a" exists only on the primary/],
  ],
  [
    'a disk more on the secondary',
    { disks: PRIMARY.disks.slice(1) },
    {},
    ['configuration', /"a" exists only on the secondary/],
  ],
  [
    'a disk of another size',
    {},
    {
      disks: [
        { name: 'a', size: 1 },
        { name: 'b', size: 8192 },
      ],
    },
    ['configuration', /"a" has 4096 bytes on the primary and 1 on/],
  ],
  ['a secondary that was promoted', {}, { role: 'active', term: 2 }, ['deposed', /promoted/]],
  ['a secondary of a newer term', {}, { term: 2 }, ['deposed', /newer primary/]],
  [
    'a primary that was restarted',
    { incarnation: 'p2', partner: null, checkpoint: 0, announced: 0 },
    {},
    ['history', /primary was restarted/],
  ],
  [
    'a secondary that was restarted',
    {},
    { incarnation: 's2', partner: null, checkpoint: 0, announced: 0 },
    ['history', /secondary was restarted/],
  ],
  [
    'a secondary behind what it had committed',
    {},
    { checkpoint: 4 },
    ['history', /at checkpoint 4, before 5/],
  ],
  [
    'a secondary ahead of what was announced',
    {},
    { checkpoint: 8 },
    ['history', /at checkpoint 8, which this primary never announced/],
  ],
]

void t.test('who may replicate', (t) => {
  t.equal(objection(PRIMARY, SECONDARY), undefined, 'two that never met')
  for (const [what, primary, secondary, verdict] of VERDICTS) {
    const objected = objection({ ...OLD_PRIMARY, ...primary }, { ...OLD_SECONDARY, ...secondary })
    if (verdict === 'replicate') t.equal(objected, undefined, what)
    else t.match(objected, { code: verdict[0], reason: verdict[1] }, what)
  }
  t.end()
})

const size = fc.maxSafeNat()
const name = fc.string({ minLength: 1, maxLength: 50 })
const anyHello: fc.Arbitrary<Hello> = fc.record({
  protocol: fc.record({ min: size, max: size }),
  group: name,
  mode: fc.constantFrom('colo', 'remus'),
  role: fc.constantFrom('primary', 'secondary', 'active'),
  incarnation: name,
  partner: fc.option(name),
  checkpoint: size,
  announced: size,
  term: size,
  disks: fc.array(fc.record({ name, size }), { minLength: 1, maxLength: 5 }),
  capacity: size,
  durable: fc.boolean(),
})

void t.test('a hello and a refusal are read as they were written', (t) => {
  fc.assert(fc.property(anyHello, (hello) => void t.same(decodeHello(encodeHello(hello)), hello)))
  const refusal: Refusal = { code: 'deposed', reason: 'because', term: 7 }
  t.same(decodeRefusal(encodeRefusal(refusal)), refusal)
  t.end()
})

void t.test('both sides reach the same verdict from what they read', (t) => {
  fc.assert(
    fc.property(anyHello, anyHello, (primary, secondary) => {
      const reread = (hello: Hello): Hello => decodeHello(encodeHello(hello))
      t.same(objection(reread(primary), reread(secondary)), objection(primary, secondary))
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
    ['incarnation', [undefined, '', null]],
    ['partner', [undefined, '', 1]],
    ['checkpoint', [undefined, -1, 0.5, '1', 2 ** 53]],
    ['announced', [undefined, null]],
    ['term', [undefined, -1]],
    [
      'disks',
      [undefined, [], {}, [1], [{ name: 'a' }], [{ name: '', size: 1 }], [{ name: 'a', size: -1 }]],
    ],
    ['capacity', [undefined, 'much']],
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
