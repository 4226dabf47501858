import fc from 'fast-check'
import t from 'tap'

import {
  commonDisks,
  objectionToDisks,
  type HelloDisk,
} from '../../../replication/machine/disk-sets.ts'
import {
  decodeHello,
  encodeHello,
  verdictOn,
  type Hello,
} from '../../../replication/machine/handshake.ts'
import { PRIMARY, SECONDARY } from './hellos.ts'

const whole = (name: string, size = 4096): HelloDisk => ({ name, size })
const added = (name: string, size = 4096): HelloDisk => ({ name, size, apart: 'new' })
const partial = (name: string, size = 4096): HelloDisk => ({ name, size, apart: 'partial' })

const source = (disks: HelloDisk[]): Hello => ({ ...PRIMARY, disks })
const target = (disks: HelloDisk[], generation: string | null = PRIMARY.generation): Hello => ({
  ...SECONDARY,
  generation,
  disks,
})

/** Disks of the primary, of the secondary; what is carried (a * is copied first), or why the two do not fit. */
const CASES: readonly [string, HelloDisk[], HelloDisk[], string | RegExp][] = [
  ['the same disks', [whole('a'), whole('b')], [whole('b'), whole('a')], 'a b'],
  ['one that was added on the primary alone', [whole('a'), added('b')], [whole('a')], 'a'],
  ['one that was added on the secondary alone', [whole('a')], [whole('a'), partial('b')], 'a'],
  ['one added on both', [whole('a'), added('b')], [whole('a'), partial('b')], 'a b*'],
  [
    'one that the secondary has again',
    [whole('a'), whole('b')],
    [whole('a'), partial('b')],
    'a b*',
  ],
  ['one that the primary has anew', [whole('a'), added('b')], [whole('a'), whole('b')], 'a b*'],
  ['one that the primary has removed', [whole('a')], [whole('a'), whole('b')], 'a'],
  [
    'one that the secondary has removed',
    [whole('a'), whole('b')],
    [whole('a')],
    /unready: disk "b" exists only on the primary/,
  ],
  ['one that is no state of a disk on the primary', [whole('a'), partial('b')], [whole('a')], 'a'],
  ['the same, whole on the secondary', [whole('a'), partial('b')], [whole('a'), whole('b')], 'a'],
  ['one that has grown on the secondary', [whole('a')], [whole('a', 8192)], 'a'],
  [
    'one that has grown on the primary',
    [whole('a', 8192)],
    [whole('a')],
    /unready: disk "a" has 8192 bytes on the primary and 4096 on the secondary/,
  ],
  [
    'an added one that the secondary has too small',
    [whole('a'), added('b', 8192)],
    [whole('a'), partial('b')],
    'a',
  ],
]

function outcome(ours: Hello, theirs: Hello): string {
  const objection = objectionToDisks(ours, theirs)
  if (objection !== undefined) return `${objection.code}: ${objection.reason}`
  return commonDisks(ours, theirs)
    .map(({ name, copies }) => (copies ? `${name}*` : name))
    .join(' ')
}

void t.test('a pair goes on with the disks that both sides have', (t) => {
  for (const [what, ours, theirs, expected] of CASES)
    t.match(outcome(source(ours), target(theirs)), expected, what)
  t.end()
})

void t.test(
  'sides that were never a pair have the same disks, but for those that stand apart',
  (t) => {
    const cases: [HelloDisk[], HelloDisk[], string | RegExp][] = [
      [[whole('a')], [whole('a')], 'a'],
      [
        [whole('a'), whole('b')],
        [whole('a')],
        /configuration: disk "b" exists only on the primary/,
      ],
      [
        [whole('a')],
        [whole('a'), whole('b')],
        /configuration: disk "b" exists only on the secondary/,
      ],
      [[whole('a')], [whole('a', 8192)], /configuration: disk "a" has 4096 .* and 8192/],
      [[whole('a', 8192)], [whole('a')], /configuration: disk "a" has 8192 .* and 4096/],
      [[whole('a'), added('b')], [whole('a'), partial('c')], 'a'],
    ]
    for (const [ours, theirs, expected] of cases)
      t.match(outcome(source(ours), target(theirs, null)), expected)
    t.end()
  },
)

void t.test('a disk that counts on either side is carried, or both are told why not', (t) => {
  const disks = fc.uniqueArray(
    fc.record({
      name: fc.constantFrom('a', 'b', 'c'),
      size: fc.constantFrom(4096, 8192),
      standing: fc.constantFrom('whole', 'new', 'partial'),
    }),
    { selector: ({ name }) => name, minLength: 1 },
  )
  const as = (all: { name: string; size: number; standing: string }[]): HelloDisk[] =>
    all.map(({ name, size, standing }) =>
      standing === 'whole' ? { name, size } : { name, size, apart: standing as 'new' },
    )
  fc.assert(
    fc.property(disks, disks, (ours, theirs) => {
      const [primary, secondary] = [source(as(ours)), target(as(theirs))]
      const refused = verdictOn(primary, secondary).kind === 'refuse'
      const common = commonDisks(primary, secondary)
      for (const { name, size, apart } of primary.disks) {
        const carried = common.find((disk) => disk.name === name)
        if (apart === undefined && carried === undefined && !refused) return false
        if (apart === 'partial' && carried !== undefined) return false
        if (carried !== undefined && carried.size < size) return false
        const other = secondary.disks.find((disk) => disk.name === name)
        const copies = apart === 'new' || other?.apart !== undefined
        if (carried !== undefined && carried.copies !== copies) return false
      }
      return true
    }),
  )
  t.end()
})

void t.test('a hello says which disks stand apart, and a wrong word is refused', (t) => {
  const hello = source([whole('a'), added('b'), partial('c')])
  t.same(decodeHello(encodeHello(hello)).disks, hello.disks)
  const wrong = { ...hello, disks: [{ name: 'a', size: 1, apart: 'half' }] }
  t.throws(() => decodeHello(Buffer.from(JSON.stringify(wrong))), { message: /hello.disks.apart/ })
  t.end()
})
