import t from 'tap'

import { Given } from '../../../cli/command-line.ts'
import { FAULT_NAMES } from '../../../cli/soak/faults.ts'
import { givenPairSettings, ownPairSettings } from '../../../cli/soak/settings.ts'

function given(options: Readonly<Record<string, string | readonly string[]>>): Given {
  const values = Object.entries(options).map(
    ([name, value]) => [name, typeof value === 'string' ? [value] : value] as const,
  )
  return new Given(new Map(values), undefined)
}

const PAIR = {
  primary: 'unix:/run/a.nbd,/run/a.control',
  secondary: 'tcp:127.0.0.1:10809,/run/b.control',
  overwrite: '',
}

void t.test('without options a soak has sound defaults', (t) => {
  t.same(ownPairSettings(given({}), 42), {
    seed: 42,
    rounds: 20,
    seconds: undefined,
    intervalMs: 20,
    lanes: 8,
    size: 8 * 1024 * 1024,
    mode: 'colo',
    disks: 2,
    faults: FAULT_NAMES,
    settings: ['heartbeat=100', 'timeout=1000'],
  })
  t.end()
})

void t.test('options replace the defaults', (t) => {
  const { seed, rounds, seconds, faults } = ownPairSettings(
    given({ seed: '7', seconds: '90', faults: 'cut,kill-both,cut' }),
    42,
  )
  t.same(
    { seed, rounds, seconds, faults },
    {
      ...{ seed: 7, rounds: undefined, seconds: 90, faults: ['cut', 'kill-both', 'cut'] },
    },
  )
  t.same(ownPairSettings(given({ faults: 'none' }), 1).faults, ['quiet'])
  t.same(ownPairSettings(given({ set: ['timeout=9000', 'memory=64M'] }), 1).settings, [
    ...['heartbeat=100', 'timeout=9000', 'memory=64M'],
  ])
  t.end()
})

void t.test('checkpoints in memory leave out what they cannot survive', (t) => {
  const memory = { set: 'durability=memory' }
  const { faults } = ownPairSettings(given(memory), 1)
  t.same(
    FAULT_NAMES.filter((name) => !faults.includes(name)),
    ['kill-secondary', 'kill-both'],
  )
  t.throws(() => ownPairSettings(given({ ...memory, faults: 'kill-both' }), 1), {
    code: 'INVALID',
    message: /durability=memory/,
  })
  t.end()
})

void t.test('a pair that runs already is named by its sockets', (t) => {
  t.match(givenPairSettings(given({ ...PAIR, group: 'vm1' }), 1), {
    primary: { nbd: { kind: 'unix', path: '/run/a.nbd' }, control: '/run/a.control' },
    secondary: {
      nbd: { kind: 'tcp', host: '127.0.0.1', port: 10809 },
      control: '/run/b.control',
    },
    group: 'vm1',
    promote: false,
  })
  t.end()
})

const OWN_MISTAKES: readonly [Record<string, string | string[]>, RegExp][] = [
  [{ rounds: '0' }, /--rounds 0 .*from 1/],
  [{ rounds: 'many' }, /--rounds many/],
  [{ rounds: '5', seconds: '5' }, /--rounds and --seconds/],
  [{ size: '1000' }, /--size 1000 .*whole MiB/],
  [{ size: 'huge' }, /not a size/],
  [{ interval: '0' }, /--interval 0/],
  [{ depth: '99' }, /--depth 99 .*1 to 16/],
  [{ mode: 'mirror' }, /--mode mirror .*colo or remus/],
  [{ faults: 'cut,earthquake' }, /no fault "earthquake" .*kill-primary/],
  [{ set: 'memory' }, /--set memory .*KEY=VALUE/],
  [{ set: 'role=primary' }, /sets this key itself/],
  [{ set: 'memory=1G|ram:1M' }, /--set memory=1G\|ram:1M/],
  [{ promote: '' }, /--promote is for a pair that runs already/],
  [{ secondary: PAIR.secondary }, /--secondary is for a pair that runs already/],
]

for (const [options, message] of OWN_MISTAKES)
  void t.test(`${JSON.stringify(options)} is refused with advice`, (t) => {
    t.throws(() => ownPairSettings(given(options), 1), { code: 'INVALID', message })
    t.end()
  })

const PAIR_MISTAKES: readonly [Record<string, string>, RegExp][] = [
  [{ primary: PAIR.primary, secondary: PAIR.secondary }, /overwrites the disks.*--overwrite/],
  [{ primary: PAIR.primary, overwrite: '' }, /--secondary is missing .*CONTROL/],
  [{ ...PAIR, primary: 'unix:/run/a.nbd' }, /--primary unix:\/run\/a\.nbd .*CONTROL/],
  [{ ...PAIR, primary: 'nbd:/x,/c' }, /not a listen address/],
  [{ ...PAIR, faults: 'cut' }, /--faults is for a pair that the soak starts itself/],
  [{ ...PAIR, keep: '' }, /--keep is for a pair that the soak starts itself/],
]

for (const [options, message] of PAIR_MISTAKES)
  void t.test(`for a given pair ${JSON.stringify(options)} is refused with advice`, (t) => {
    t.throws(() => givenPairSettings(given(options), 1), { code: 'INVALID', message })
    t.end()
  })
