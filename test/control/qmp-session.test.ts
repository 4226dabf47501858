import fc from 'fast-check'
import t from 'tap'

import { EventBus } from '../../control/events.ts'
import { QmpSession } from '../../control/qmp-session.ts'
import { VERSION } from '../../control/version.ts'
import { contextOf, FakeGroup, lost } from './fake-group.ts'

const NEGOTIATE = '{"execute":"qmp_capabilities"}'

async function ask(session: QmpSession, text: string): Promise<unknown> {
  const reply = await session.answer(text)
  if (!/^[^\r\n]*\r\n$/.test(reply)) throw new Error(`not one line: ${reply}`)
  return JSON.parse(reply)
}

async function negotiated(...groups: FakeGroup[]): Promise<QmpSession> {
  const session = new QmpSession(contextOf(...groups))
  await session.answer(NEGOTIATE)
  return session
}

function failure(desc: RegExp, kind = 'GenericError'): object {
  return { error: { class: kind, desc } }
}

void t.test('the greeting has QEMU’s shape and offers no capability', (t) => {
  t.same(JSON.parse(new QmpSession(contextOf()).greeting()), {
    QMP: {
      version: { qemu: { major: 5, minor: 2, micro: 0 }, package: `colotap ${VERSION}` },
      capabilities: [],
    },
  })
  t.match(VERSION, /^\d+\.\d+\.\d+/)
  t.end()
})

void t.test('nothing runs before the negotiation, and it happens once', async (t) => {
  const context = contextOf(new FakeGroup('vm1'))
  const session = new QmpSession(context)
  t.match(await ask(session, '{"execute":"quit","id":1}'), {
    ...failure(/Expecting capabilities negotiation/, 'CommandNotFound'),
    id: 1,
  })
  t.equal(context.quits, 0)
  const bad = '{"execute":"qmp_capabilities","arguments":{"enable":["oob"]}}'
  t.match(await ask(session, bad), failure(/'oob' is not available/))
  t.match(
    await ask(session, '{"execute":"query-version"}'),
    failure(/Expecting/, 'CommandNotFound'),
  )
  t.same(await ask(session, '{"execute":"qmp_capabilities","arguments":{"enable":[]}}'), {
    return: {},
  })
  t.match(await ask(session, NEGOTIATE), failure(/already complete/, 'CommandNotFound'))
  t.same(await ask(session, '{"execute":"quit"}'), { return: {} })
  t.equal(context.quits, 1)
})

void t.test('a malformed request gets its error, and the next one works', async (t) => {
  const cases: [string, RegExp, string?][] = [
    ['', /JSON parse error/],
    ['nonsense', /JSON parse error/],
    ['{"execute":', /JSON parse error/],
    ['{"execute":"quit"', /JSON parse error/],
    ["{'execute':'quit'}", /JSON parse error/],
    ['{"execute":"quit"} trailing', /JSON parse error/],
    ['null', /must be a JSON object/],
    ['17', /must be a JSON object/],
    ['"quit"', /must be a JSON object/],
    ['[{"execute":"quit"}]', /must be a JSON object/],
    ['{}', /lacks member 'execute'/],
    ['{"id":3}', /lacks member 'execute'/],
    ['{"execute":7}', /'execute' must be a string/],
    ['{"execute":null}', /'execute' must be a string/],
    ['{"exec-oob":"quit"}', /'exec-oob' is unexpected/],
    ['{"execute":"quit","extra":1}', /'extra' is unexpected/],
    ['{"execute":"quit","arguments":[]}', /'arguments' must be an object/],
    ['{"execute":"quit","arguments":null}', /'arguments' must be an object/],
    ['{"execute":"quit","arguments":"x"}', /'arguments' must be an object/],
    ['{"execute":"quit","arguments":{"x":1}}', /Parameter 'x' is unexpected/],
    ['{"execute":"quit","arguments":{"__proto__":{}}}', /'__proto__' is unexpected/],
    ['{"execute":"no-such"}', /command 'no-such' has not been found/, 'CommandNotFound'],
    ['{"execute":"__proto__"}', /'__proto__' has not been found/, 'CommandNotFound'],
    ['{"execute":"toString"}', /'toString' has not been found/, 'CommandNotFound'],
    ['{"execute":""}', /'' has not been found/, 'CommandNotFound'],
  ]
  const session = await negotiated(new FakeGroup('vm1'))
  for (const [text, desc, kind] of cases) {
    t.match(await ask(session, text), failure(desc, kind), text)
    t.match(await ask(session, '{"execute":"query-version"}'), { return: { qemu: { major: 5 } } })
  }
})

void t.test('the id of a request is echoed whatever it is, also with an error', async (t) => {
  const session = await negotiated()
  for (const id of [0, -1, 'x', null, true, [1], { a: { b: [] } }, '']) {
    const text = JSON.stringify(id)
    t.strictSame(await ask(session, `{"execute":"quit","id":${text}}`), { return: {}, id })
    const refused = (await ask(session, `{"id":${text},"execute":"no"}`)) as { id: unknown }
    t.strictSame(refused.id, id)
  }
  t.notOk(Object.hasOwn((await ask(session, '{"execute":"quit"}')) as object, 'id'))
  t.notOk(Object.hasOwn((await ask(session, '{"id":1')) as object, 'id'))
})

void t.test('a failed command says why; a bug is not made a reply', async (t) => {
  const group = new FakeGroup('vm1')
  const session = await negotiated(group)
  group.onCheckpoint = () => Promise.reject(lost())
  t.strictSame(await ask(session, '{"execute":"xen-colo-do-checkpoint"}'), {
    error: { class: 'GenericError', desc: lost().message },
  })
  group.onCheckpoint = () => Promise.reject(new TypeError('planted'))
  await t.rejects(session.answer('{"execute":"xen-colo-do-checkpoint"}'), new TypeError('planted'))
})

void t.test('events are shown after the negotiation, with their time', async (t) => {
  const session = new QmpSession(contextOf())
  const bus = new EventBus(() => 1_700_000_000_123.4567)
  const shown: (string | undefined)[] = []
  const unsubscribe = bus.subscribe((event) => shown.push(session.show(event)))
  const data = { group: 'vm1', error: 'disk full' }
  bus.publish({ event: 'REPLICATION_ERROR', data })
  await session.answer(NEGOTIATE)
  bus.publish({ event: 'REPLICATION_ERROR', data })
  unsubscribe()
  bus.publish({ event: 'REPLICATION_ERROR', data })
  t.equal(shown.length, 2)
  t.equal(shown[0], undefined)
  t.strictSame(JSON.parse(shown[1]!), {
    event: 'REPLICATION_ERROR',
    data,
    timestamp: { seconds: 1_700_000_000, microseconds: 123_456 },
  })
})

void t.test('any text gets one reply that is a return or an error, and never rejects', async () => {
  const session = await negotiated(new FakeGroup('vm1'))
  const name = fc.constantFrom('execute', 'arguments', 'id', 'enable', 'primary', 'group', 'force')
  const almost = fc
    .dictionary(name, fc.oneof(fc.jsonValue({ maxDepth: 2 }), fc.constant('replication-promote')))
    .map((object) => JSON.stringify(object))
  await fc.assert(
    fc.asyncProperty(fc.oneof(fc.string(), fc.json(), almost), async (text) => {
      const reply = (await ask(session, text)) as object
      return Object.hasOwn(reply, 'return') !== Object.hasOwn(reply, 'error')
    }),
    { numRuns: 500 },
  )
})
