import t from 'tap'

import type { ControlContext } from '../../control/command.ts'
import { COMMANDS } from '../../control/commands.ts'
import { AssertionFailure } from '../../core/assert.ts'
import { Fault } from '../../core/fault.ts'
import { contextOf, FakeGroup, lost } from './fake-group.ts'

/** Runs a command as a door does. */
async function run(context: ControlContext, name: string, args: object = {}): Promise<unknown> {
  const command = COMMANDS.get(name)
  if (command === undefined) throw new Error(`no command ${name}`)
  return await command.execute(context, args as Record<string, unknown>)
}

async function refusal(context: ControlContext, name: string, args: object = {}): Promise<string> {
  try {
    await run(context, name, args)
  } catch (error) {
    if (error instanceof Fault) return error.message
    throw error
  }
  throw new Error(`${name} succeeded`)
}

void t.test('status shows every group, or the one that is named', async (t) => {
  const [one, two] = [new FakeGroup('vm1'), new FakeGroup('vm2', { role: 'secondary' })]
  const context = contextOf(one, two)
  t.same(await run(context, 'replication-status'), { groups: [one.state, two.state] })
  t.same(await run(context, 'replication-status', { group: 'vm2' }), { groups: [two.state] })
  t.same(await run(contextOf(), 'replication-status'), { groups: [] })
  const message = await refusal(context, 'replication-status', { group: 'vm3' })
  t.match(message, /'vm3'.*vm1, vm2/)
})

void t.test('the group may be left out exactly where there is only one', async (t) => {
  const only = new FakeGroup('vm1')
  await run(contextOf(only), 'replication-checkpoint')
  t.same(only.calls, ['checkpoint without limit'])

  const two = [new FakeGroup('vm1'), new FakeGroup('vm2')] as const
  for (const name of ['replication-checkpoint', 'replication-promote']) {
    t.match(await refusal(contextOf(...two), name), /several.*vm1, vm2/)
    t.match(await refusal(contextOf(), name), /no replication group/)
    t.match(await refusal(contextOf(), name, { group: 'vm1' }), /no replication group/)
  }
  t.same([two[0].calls, two[1].calls], [[], []])
})

void t.test('a checkpoint gives its numbers, and fails as the group fails', async (t) => {
  const group = new FakeGroup('vm1')
  const args = { group: 'vm1', timeoutMs: 250 }
  t.same(await run(contextOf(group), 'replication-checkpoint', args), {
    checkpoint: 1,
    pauseUs: 900,
    commitUs: 400,
    bytes: 8192,
  })
  t.same(group.calls, ['checkpoint 250'])
  group.onCheckpoint = () => Promise.reject(lost())
  t.equal(await refusal(contextOf(group), 'replication-checkpoint'), lost().message)
})

void t.test('promote uses force only when told to', async (t) => {
  const group = new FakeGroup('vm1', { role: 'secondary' })
  t.match(await run(contextOf(group), 'replication-promote'), { role: 'active', term: 2 })
  await run(contextOf(group), 'replication-promote', { force: true })
  await run(contextOf(group), 'replication-promote', { force: false })
  t.same(group.calls, ['promote gently', 'promote by force', 'promote gently'])
})

void t.test('arguments that do not fit are refused, and nothing runs', async (t) => {
  const cases: [string, object, RegExp][] = [
    ['replication-checkpoint', { timeoutMs: 0 }, /'timeoutMs' is 0: .* 1 to 2147483647/],
    ['replication-checkpoint', { timeoutMs: 1.5 }, /'timeoutMs' is 1.5/],
    ['replication-checkpoint', { timeoutMs: '10' }, /'timeoutMs' is the string '10'/],
    ['replication-checkpoint', { timeoutMs: null }, /'timeoutMs' is null/],
    ['replication-checkpoint', { timeoutMS: 10 }, /'timeoutMS' is unexpected.*group, timeoutMs/],
    ['replication-checkpoint', { group: 7 }, /'group' is 7: expected a string/],
    [
      'replication-promote',
      { force: 'yes' },
      /'force' is the string 'yes': expected true or false/,
    ],
    ['replication-promote', { force: [true] }, /'force' is an array/],
    ['replication-promote', { force: {} }, /'force' is an object/],
    ['replication-promote', JSON.parse('{"__proto__":1}') as object, /'__proto__' is unexpected/],
    ['replication-promote', { toString: 1 }, /'toString' is unexpected/],
    ['xen-set-replication', { enable: true }, /'primary' is missing: expected true or false/],
    ['xen-colo-do-checkpoint', { group: 'vm1' }, /'group' is unexpected.*takes none/],
    ['quit', { now: true }, /'now' is unexpected/],
  ]
  for (const [name, args, message] of cases) {
    const group = new FakeGroup('vm1')
    const context = contextOf(group)
    t.match(await refusal(context, name, args), message, `${name} ${JSON.stringify(args)}`)
    t.same([group.calls, context.quits], [[], 0])
  }
})

void t.test('whatever a client sends as a name, the message stays one short line', async (t) => {
  const name = `a\nb\u001b[31m${'x'.repeat(10_000)}`
  const message = await refusal(contextOf(), 'quit', { [name]: 1 })
  t.ok(message.length < 200 && !/\p{Cc}/u.test(message))
})

void t.test('xen-colo-do-checkpoint waits for every group and fails if one fails', async (t) => {
  const groups = [new FakeGroup('vm1'), new FakeGroup('vm2')] as const
  t.same(await run(contextOf(...groups), 'xen-colo-do-checkpoint'), {})
  t.same([groups[0].state.checkpoint, groups[1].state.checkpoint], [1, 1])

  groups[0].onCheckpoint = () => Promise.reject(lost())
  let commit = (): void => undefined
  groups[1].onCheckpoint = () =>
    new Promise((resolve) => {
      commit = () => {
        resolve(groups[1].commit())
      }
    })
  let settled = false
  const failing = refusal(contextOf(...groups), 'xen-colo-do-checkpoint').finally(() => {
    settled = true
  })
  await new Promise(setImmediate)
  t.notOk(settled, 'the other group is still at it')
  commit()
  t.equal(await failing, lost().message)
  t.equal(groups[1].state.checkpoint, 2)

  groups[1].onCheckpoint = () => Promise.reject(new Fault('TIMEOUT', 'no answer in time'))
  t.match(
    await refusal(contextOf(...groups), 'xen-colo-do-checkpoint'),
    /secondary is gone.*no answer in time/,
  )
  t.match(await refusal(contextOf(), 'xen-colo-do-checkpoint'), /no replication group/)
})

void t.test('a bug in a group is not reported as a failed command', async (t) => {
  const group = new FakeGroup('vm1')
  group.onCheckpoint = () => Promise.reject(new AssertionFailure('planted'))
  await t.rejects(refusal(contextOf(group), 'xen-colo-do-checkpoint'), AssertionFailure)
})

void t.test('xen-set-replication does what libxl means by it, where the roles fit', async (t) => {
  const [on, off] = [true, false]
  const cases: [string, object, string[] | RegExp][] = [
    ['primary', { enable: on, primary: on }, ['start']],
    ['primary', { enable: off, primary: on }, ['stop']],
    ['primary', { enable: off, primary: on, failover: on }, ['stop']],
    ['primary', { enable: on, primary: off }, /is primary, expected secondary/],
    ['primary', { enable: off, primary: off, failover: on }, /is primary/],
    ['secondary', { enable: on, primary: off }, ['start']],
    ['secondary', { enable: off, primary: off }, ['stop']],
    ['secondary', { enable: off, primary: off, failover: off }, ['stop']],
    ['secondary', { enable: off, primary: off, failover: on }, ['promote by force']],
    ['secondary', { enable: on, primary: on }, /is secondary, expected primary/],
    ['secondary', { enable: on, primary: off, failover: on }, /'failover' is true/],
    ['active', { enable: off, primary: off, failover: on }, ['promote by force']],
    ['active', { enable: on, primary: on }, /is active, expected primary/],
    ['active', { enable: on, primary: off }, /is active, expected secondary/],
  ]
  for (const [role, args, expected] of cases) {
    const group = new FakeGroup('vm1', { role: role as 'primary' })
    const context = contextOf(group)
    const label = `${role} ${JSON.stringify(args)}`
    if (expected instanceof RegExp) {
      t.match(await refusal(context, 'xen-set-replication', args), expected, label)
      t.same(group.calls, [], label)
    } else {
      t.same(await run(context, 'xen-set-replication', args), {}, label)
      t.same(group.calls, expected, label)
    }
  }
})

void t.test('xen-set-replication changes no group when one has the wrong role', async (t) => {
  const groups = [new FakeGroup('vm1'), new FakeGroup('vm2', { role: 'secondary' })] as const
  const args = { enable: false, primary: true }
  t.match(await refusal(contextOf(...groups), 'xen-set-replication', args), /group vm2/)
  t.same([groups[0].calls, groups[1].calls], [[], []])
})

void t.test('a failover that one group refuses is a failed command', async (t) => {
  const groups = ['vm1', 'vm2'].map((name) => new FakeGroup(name, { role: 'secondary' }))
  groups[0]!.promotion = new Fault('NOT_PERMITTED', 'vm1 is inconsistent')
  const args = { enable: false, primary: false, failover: true }
  t.equal(await refusal(contextOf(...groups), 'xen-set-replication', args), 'vm1 is inconsistent')
  t.equal(groups[1]!.state.role, 'active', 'the other one is promoted all the same')
})

void t.test('query-xen-replication-status names every group that has failed', async (t) => {
  const well = new FakeGroup('vm1', { protection: 'unprotected', reason: 'no secondary yet' })
  const failed = new FakeGroup('vm2', { error: 'commit 7 failed' })
  const mixed = new FakeGroup('vm3', { protection: 'inconsistent', reason: 'full sync at 3 %' })
  t.same(await run(contextOf(), 'query-xen-replication-status'), { error: false })
  t.same(await run(contextOf(well), 'query-xen-replication-status'), { error: false })
  t.same(await run(contextOf(well, failed, mixed), 'query-xen-replication-status'), {
    error: true,
    desc: 'vm2: commit 7 failed; vm3: inconsistent: full sync at 3 %',
  })
})

void t.test('exports are shown in QEMU’s shape with fields of our own', async (t) => {
  t.same(await run(contextOf(), 'query-block-exports'), [
    {
      id: 'disk0',
      type: 'nbd',
      'node-name': 'disk0',
      'shutting-down': false,
      size: 1 << 30,
      readOnly: false,
      connections: 2,
      ...{ state: 'serving', pipeline: 'ram:1G', error: null },
    },
  ])
})

void t.test('exports are added, removed and resized as commands say', async (t) => {
  const context = contextOf()
  const added = { name: 'disk0', pipeline: 'ram:1G' }
  t.match(await run(context, 'export-add', added), { id: 'disk0', size: 1 << 30 })
  await run(context, 'export-add', { ...added, description: 'text', readOnly: true })
  await run(context, 'export-add', { ...added, allow: ['cn:a', 'psk:b'] })
  await run(context, 'export-remove', { name: 'disk0' })
  await run(context, 'export-remove', { name: 'disk0', force: true })
  await run(context, 'block_resize', { device: 'disk0', size: 4096 })
  await run(context, 'block_resize', { 'node-name': 'disk0', size: 8192 })
  t.same(context.changes, [
    'add {"name":"disk0","pipeline":"ram:1G","description":"","readOnly":false}',
    'add {"name":"disk0","pipeline":"ram:1G","description":"text","readOnly":true}',
    'add {"name":"disk0","pipeline":"ram:1G","description":"","readOnly":false,"allow":["cn:a","psk:b"]}',
    'remove disk0',
    'remove disk0 by force',
    'resize disk0 to 4096',
    'resize disk0 to 8192',
  ])
})

void t.test('query-commands lists the table, quit quits', async (t) => {
  const listed = (await run(contextOf(), 'query-commands')) as { name: string }[]
  t.same(
    listed.map(({ name }) => name),
    [...COMMANDS.keys()],
  )
  const context = contextOf()
  t.same(await run(context, 'quit'), {})
  t.equal(context.quits, 1)
})

void t.test('a flush for blktap2 is for primaries, one at a time in each group', async (t) => {
  const [group, other] = [new FakeGroup('vm1'), new FakeGroup('vm2')]
  const context = contextOf(group, other)
  let commit: () => void = () => undefined
  group.onCheckpoint = () =>
    new Promise((resolve) => {
      commit = () => resolve(group.commit())
    })
  const first = run(context, 'blktap2-flush', { group: 'vm1' })
  t.match(await refusal(context, 'blktap2-flush', { group: 'vm1' }), /another flush is running/)
  t.match(await run(context, 'blktap2-flush', { group: 'vm2' }), { checkpoint: 1 })
  commit()
  t.match(await first, { checkpoint: 1 })
  group.onCheckpoint = () => Promise.reject(lost())
  t.equal(await refusal(context, 'blktap2-flush', { group: 'vm1' }), lost().message)
  group.onCheckpoint = () => group.commit()
  t.match(await run(context, 'blktap2-flush', { group: 'vm1' }), { checkpoint: 2 })
  for (const role of ['secondary', 'active'] as const) {
    group.become(role)
    t.match(await refusal(context, 'blktap2-flush', { group: 'vm1' }), /expected primary.*vm1/)
  }
  t.equal(group.calls.length, 3)
})
