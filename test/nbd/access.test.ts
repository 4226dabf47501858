import t from 'tap'

import { isRestricted, parseClientRule, visibleTo } from '../../nbd/access.ts'
import type { Export, ExportTable } from '../../nbd/export.ts'
import { parseDistinguishedName, type PeerIdentity } from '../../net/peer-identity.ts'
import { MemoryDevice } from './memory-device.ts'

function table(clients: Readonly<Record<string, readonly string[] | undefined>>): ExportTable {
  const exports = Object.entries(clients).map(([name, rules]): Export => {
    const shared = { name, description: '', device: new MemoryDevice(512) }
    return rules === undefined ? shared : { ...shared, clients: rules.map(parseClientRule) }
  })
  return { find: (name) => exports.find((one) => one.name === name), list: () => exports }
}

function certificate(commonName: string | undefined, dn: string): PeerIdentity {
  return { kind: 'certificate', commonName, subject: parseDistinguishedName(dn)! }
}

void t.test('each client sees what is for all, and what is for it', (t) => {
  const exports = table({
    all: undefined,
    'by cn': ['cn:host-a', 'cn:host-b'],
    'by dn': ['dn:CN=host-a,O=Example'],
    'by key': ['psk:vm1'],
    'two ways': ['psk:host-a', 'cn:host-a'],
  })
  const cases: [string, PeerIdentity | undefined, string[]][] = [
    ['nobody yet', undefined, ['all']],
    ['who proved nothing', { kind: 'nobody' }, ['all']],
    ['host-a', certificate('host-a', 'CN=host-a'), ['all', 'by cn', 'two ways']],
    [
      'host-a, Example',
      certificate('host-a', 'CN=host-a,O=Example'),
      ['all', 'by cn', 'by dn', 'two ways'],
    ],
    ['host-b', certificate('host-b', 'CN=host-b,O=Example'), ['all', 'by cn']],
    ['a subject in another order', certificate(undefined, 'O=Example,CN=host-a'), ['all']],
    ['another case', certificate('HOST-A', 'CN=HOST-A,O=Example'), ['all']],
    ['a name of a user', certificate('vm1', 'CN=vm1'), ['all']],
    ['no common name', certificate(undefined, 'CN=host-a+CN=host-b'), ['all']],
    ['vm1', { kind: 'key', user: 'vm1' }, ['all', 'by key']],
    ['host-a by key', { kind: 'key', user: 'host-a' }, ['all', 'two ways']],
    ['an empty user', { kind: 'key', user: '' }, ['all']],
  ]
  for (const [what, who, expected] of cases) {
    const view = visibleTo(exports, who)
    t.strictSame(
      view.list().map(({ name }) => name),
      expected,
      what,
    )
    for (const { name } of exports.list())
      t.equal(view.find(name) !== undefined, expected.includes(name), `${what}: ${name}`)
    t.equal(view.find('none'), undefined)
  }
  t.end()
})

void t.test('a table is restricted as soon as one export is', (t) => {
  t.notOk(isRestricted(table({ a: undefined, b: undefined })))
  t.ok(isRestricted(table({ a: undefined, b: ['psk:x'] })))
  t.ok(isRestricted(table({ a: [] })))
  t.end()
})

void t.test('what names no client is refused with advice', (t) => {
  for (const text of [
    '',
    'a',
    'cn:',
    'dn:',
    'psk:',
    'dn:a',
    'CN=a',
    'user:a',
    ':a',
    'dn:CN=a,,O=b',
  ])
    t.throws(() => parseClientRule(text), { code: 'INVALID', remedy: /cn:NAME.*psk:/ }, `"${text}"`)
  t.strictSame(parseClientRule('cn:a:b=c'), { kind: 'cn', name: 'a:b=c' })
  t.end()
})
