/** Real pairs over TLS: what they do with each other is what they do without, nobody reads along, and the wrong ones are refused. */

import net from 'node:net'
import path from 'node:path'

import t, { type Test } from 'tap'

import { NbdClient } from '../../nbd/client.ts'
import { Authority, writePskFile } from '../support/certificates.ts'
import { colotap } from '../support/colotap.ts'
import { groupState, protection, startHost, type ReplicaHost } from '../support/replica-pair.ts'
import { freePorts, tempDirectory } from '../support/scope.ts'

const SIZE = 1024 * 1024
const MARKER = 'nobody on the way may read this. '

/** Passes bytes on from one port to another, and keeps a copy of them. */
class Wiretap {
  heard = ''

  constructor(t: Test, from: number, to: number) {
    const server = net.createServer((near) => {
      const far = net.connect(to, '127.0.0.1')
      for (const [one, other] of [
        [near, far],
        [far, near],
      ] as const) {
        one.on('error', () => undefined)
        one.on('data', (chunk: Buffer) => {
          this.heard += chunk.toString('latin1')
          other.write(chunk)
        })
        one.on('close', () => other.destroy())
      }
    })
    server.listen(from, '127.0.0.1')
    t.teardown(() => server.close())
  }
}

interface Links {
  readonly secondary: readonly string[]
  readonly primary: readonly string[]
}

interface Started {
  readonly primary: ReplicaHost
  readonly secondary: ReplicaHost
  readonly wiretap: Wiretap
}

async function start(t: Test, folder: string, links: Links): Promise<Started> {
  const [port, tapped] = await freePorts(2)
  const of = (settings: readonly string[]) =>
    ({ mode: 'remus', disks: { disk: SIZE }, settings }) as const
  const wiretap = new Wiretap(t, tapped!, port!)
  const secondary = await startHost(t, of(links.secondary), folder, 'secondary', port!)
  const primary = await startHost(t, of(links.primary), folder, 'primary', tapped!)
  return { primary, secondary, wiretap }
}

/** Writes the marker all over the disk, and takes a checkpoint. */
async function writeAndCheckpoint({ server, qmp }: ReplicaHost): Promise<void> {
  const client = await NbdClient.connect({
    address: { kind: 'unix', path: server.socket },
    exportName: 'disk',
  })
  await client.write(Buffer.alloc(SIZE / 2, MARKER), 0)
  await client.disconnect()
  await qmp.execute('replication-checkpoint')
}

async function certificates(t: Test, folder: string): Promise<Links> {
  const authority = await Authority.make(t, path.join(folder, 'ca'))
  await authority.issue(path.join(folder, 'one'), 'server', { subject: 'host-b' })
  await authority.issue(path.join(folder, 'two'), 'client', { subject: 'host-a' })
  return {
    secondary: [`tls-creds=${folder}/one`, 'tls-name=localhost'],
    primary: [`tls-creds=${folder}/two`],
  }
}

async function keys(_: Test, folder: string): Promise<Links> {
  const file = await writePskFile(path.join(folder, 'keys.psk'), ['vm1', 'vm2'])
  const settings = [`tls-psk=${file}`, 'tls-user=vm2']
  return { secondary: settings, primary: settings }
}

const nothing = (): Promise<Links> => Promise.resolve({ secondary: [], primary: [] })

for (const [how, prepare, readable] of [
  ['certificates', certificates, false],
  ['a pre-shared key', keys, false],
  ['nothing', nothing, true],
] as const) {
  void t.test(`a pair with ${how} takes checkpoints`, async (t) => {
    const folder = await tempDirectory(t)
    const { primary, secondary, wiretap } = await start(t, folder, await prepare(t, folder))
    await protection(primary.qmp, 'protected')
    const { checkpoint } = await groupState(secondary.qmp)
    await writeAndCheckpoint(primary)
    t.equal((await groupState(secondary.qmp)).checkpoint, checkpoint + 1)
    const can = readable ? 'can be' : 'cannot be'
    t.equal(wiretap.heard.includes(MARKER), readable, `what is written ${can} overheard`)
    t.equal(wiretap.heard.includes('generation'), readable, `the hello ${can} overheard`)
    t.equal((await primary.server.stop()).code, 0)
    t.equal((await secondary.server.stop()).code, 0)
  })
}

void t.test('the wrong peer is refused, and both logs say who and why', async (t) => {
  const folder = await tempDirectory(t)
  const right = await certificates(t, folder)
  const foreign = await certificates(t, path.join(folder, 'foreign'))
  const cases: [string, Links, string, string][] = [
    [
      'of another authority',
      { ...right, primary: foreign.primary },
      'TLS: it ended the connection before it was secured',
      'TLS: its certificate is not signed by the ca-cert.pem here',
    ],
    [
      'of another name',
      { ...right, secondary: [`tls-creds=${folder}/one`, 'tls-name=host-c'] },
      'not for host-c (certificate \\"host-a\\"',
      'the secondary does not accept this side: TLS: its certificate is for DNS:localhost',
    ],
    [
      'without credentials',
      { ...right, primary: [] },
      'TLS: it does not speak TLS',
      'the other side speaks TLS, and this side has no credentials',
    ],
    [
      'with credentials that the secondary lacks',
      { ...right, secondary: [] },
      'the other side speaks TLS, and this side has no credentials',
      'TLS: it ended the connection before it was secured',
    ],
  ]
  for (const [who, links, secondarySays, primarySays] of cases) {
    await t.test(who, async (t) => {
      const { primary, secondary } = await start(t, await tempDirectory(t), links)
      await secondary.server.child.complained(secondarySays)
      await primary.server.child.complained(primarySays)
      t.not((await groupState(primary.qmp)).protection, 'protected')
      t.equal((await primary.server.stop()).code, 0)
      t.equal((await secondary.server.stop()).code, 0)
    })
  }
})

void t.test('settings that would leave the link open are refused at the start', async (t) => {
  const folder = await tempDirectory(t)
  const { secondary } = await certificates(t, folder)
  const { primary: psk } = await keys(t, folder)
  const [port] = await freePorts(1)
  const at = (query: readonly string[], group = 'a'): string =>
    `remus:127.0.0.1:${port}?${['role=secondary', `group=${group}`, ...query].join('&')}|ram:1M`
  const remedy = 'tls-creds=DIR or tls-psk=FILE.*--insecure'
  const cases: [string[], RegExp][] = [
    [
      ['remus:192.0.2.7:9?role=primary|ram:1M'],
      new RegExp(`neither authenticated nor encrypted.*192\\.0\\.2\\.7:9.*${remedy}`),
    ],
    [
      [`remus:0.0.0.0:${port}?role=secondary|ram:1M`],
      new RegExp(`neither authenticated nor encrypted.*0\\.0\\.0\\.0.*${remedy}`),
    ],
    [[at([`tls-creds=${folder}/none`])], /no certificate of the authority.*none\/ca-cert\.pem/],
    [[at([...secondary, ...psk])], /exclude each other/],
    [[at(['tls-user=vm1'])], /tls-user.*tls-psk/],
    [[at(['tls-name=vm1'])], /tls-name.*tls-creds/],
    [[at(['tls-psk='])], /tls-psk has no value/],
    [[at(secondary), at(psk, 'b')], /group "b" disagrees with the other groups on its port/],
    [[at(secondary), at([], 'b')], /group "b" disagrees with the other groups on its port/],
    [[at(secondary), at([])], /disagrees with the other disks of group "a"/],
  ]
  for (const [pipelines, expected] of cases) {
    const { code, stderr } = await colotap(t, [
      'serve',
      ...pipelines.flatMap((pipeline, index) => ['--export', `disk${index}=${pipeline}`]),
      ...['--listen', `unix:${folder}/n`, '--control', `${folder}/c`, '--state-dir', folder],
    ])
    t.equal(code, 1, pipelines.join(' '))
    t.match(stderr.trim().split('\n').at(-1), expected)
  }
})
