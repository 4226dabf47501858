import fc from 'fast-check'
import t from 'tap'

import type { Driver, Stage } from '../../drivers/driver.ts'
import { formatPipeline, parsePipeline, parseStages } from '../../drivers/pipeline.ts'

const key = { meaning: 'a test' }

function driver(name: string, kind: Driver['kind'], keys: Driver['keys'] = {}): Driver {
  return { name, kind, keys, target: 'anything', open: () => Promise.reject(new Error(name)) }
}

const drivers = [
  driver('aio', 'backend', { direct: key, discard: key }),
  driver('ram', 'backend'),
  driver('colo', 'layer', { role: key, group: key }),
  driver('remus', 'layer'),
]

function read(text: string): [string, string, Record<string, string>][] {
  return parsePipeline(text, drivers).map(({ driver, target, settings }) => [
    driver,
    target,
    Object.fromEntries(settings),
  ])
}

void t.test('a pipeline is read top first', (t) => {
  t.strictSame(read('aio:/srv/vm/disk.img'), [['aio', '/srv/vm/disk.img', {}]])
  t.strictSame(read('colo:192.0.2.7:9000?role=primary&group=vm1|aio:/d?direct=on'), [
    ['colo', '192.0.2.7:9000', { role: 'primary', group: 'vm1' }],
    ['aio', '/d', { direct: 'on' }],
  ])
  t.strictSame(read('remus:192.0.2.7:9000|aio:/dev/vg/vm1'), [
    ['remus', '192.0.2.7:9000', {}],
    ['aio', '/dev/vg/vm1', {}],
  ])
  t.strictSame(read(' colo:[::1]:9000 | ram:10M '), [
    ['colo', '[::1]:9000', {}],
    ['ram', '10M', {}],
  ])
  t.end()
})

void t.test('what has a meaning in the syntax is percent-encoded', (t) => {
  t.strictSame(read('aio:/a%7Cb%3Fc%26d%25e%C3%A9?direct=a%3Db'), [
    ['aio', '/a|b?c&d%eé', { direct: 'a=b' }],
  ])
  t.strictSame(read('aio:/x?direct'), [['aio', '/x', { direct: '' }]])
  t.strictSame(read('aio:/x?direct=a=b'), [['aio', '/x', { direct: 'a=b' }]], 'first = separates')
  t.end()
})

const wrong: readonly (readonly [text: string, code: string, says: RegExp])[] = [
  ['', 'INVALID', /empty/],
  ['aio:/x|', 'INVALID', /empty/],
  ['|aio:/x', 'INVALID', /empty/],
  ['colo:a:1||aio:/x', 'INVALID', /empty/],
  ['/srv/disk.img', 'INVALID', /no driver is named.*aio:\/srv/],
  [':/x', 'INVALID', /no driver is named/],
  ['aio:', 'INVALID', /aio has no target/],
  ['aio:?direct=on', 'INVALID', /aio has no target/],
  ['aoi:/x', 'NOT_FOUND', /did you mean aio\? the drivers are aio, ram, colo, remus/],
  ['constructor:/x', 'NOT_FOUND', /the drivers are/],
  ['aio:/x?dirct=on', 'INVALID', /no setting dirct.*did you mean direct\?.*direct, discard/],
  ['aio:/x?toString=on', 'INVALID', /no setting toString/],
  ['ram:1M?size=1', 'INVALID', /no settings at all/],
  ['aio:/x?direct=on&direct=on', 'INVALID', /direct twice/],
  ['aio:/x?direct=on&', 'INVALID', /without a name/],
  ['aio:/x?=on', 'INVALID', /without a name/],
  ['aio:/100%', 'INVALID', /%25/],
  ['aio:/%zz', 'INVALID', /%25/],
  ['aio:/%ff', 'INVALID', /percent/],
  ['colo:a:1', 'INVALID', /colo is a layer.*aio, ram/],
  ['aio:/x|ram:1M', 'INVALID', /aio is a backend.*colo, remus/],
  ['colo:a:1|aio:/x|remus:b:1', 'INVALID', /aio is a backend/],
]

for (const [text, code, says] of wrong) {
  void t.test(`"${text}" is refused with advice`, (t) => {
    t.throws(() => parsePipeline(text, drivers), { name: 'Fault', code, message: says })
    t.end()
  })
}

void t.test('what is written is read back, whatever it contains', (t) => {
  const anything = fc.string({ unit: 'binary', minLength: 1 })
  const tricky = fc.string({
    unit: fc.constantFrom('|', '?', '&', '=', '%', ' ', ':', 'é', '\n', '\u00a0', 'a', '1'),
    minLength: 1,
  })
  const text = fc.oneof(anything, tricky)
  const stage: fc.Arbitrary<Stage> = fc.record({
    driver: fc.stringMatching(/^[a-z][a-z0-9-]{0,8}$/),
    target: text,
    settings: fc
      .array(fc.tuple(text, fc.oneof(text, fc.constant(''))), { maxLength: 4 })
      .map((pairs) => new Map(pairs)),
  })
  fc.assert(
    fc.property(fc.array(stage, { minLength: 1, maxLength: 4 }), (stages) => {
      t.same(parseStages(formatPipeline(stages)), stages)
    }),
  )
  t.end()
})
