/**
 * What a pair of real processes moves over its link when it comes back, counted on the wire: about what changed, whatever the
 * size of the disk. And what it notices of a secondary that differs, and repairs.
 */

import { open } from 'node:fs/promises'

import t from 'tap'

import { seededRandom, below } from '../../core/seeded-random.ts'
import { GiB, KiB, MiB } from '../../core/units.ts'
import { NbdClient } from '../../nbd/client.ts'
import { colotap } from '../support/colotap.ts'
import { CountingProxy } from '../support/counting-proxy.ts'
import {
  linkLost,
  protection,
  restartHost,
  startHost,
  type ReplicaHost,
} from '../support/replica-pair.ts'
import type { QmpClient } from '../support/qmp.ts'
import { freePorts, tempDirectory, type Scope } from '../support/scope.ts'

const SIZE = 10 * GiB
const CHANGED = 100 * MiB
const REQUEST = 1 * MiB
/** Headers of frames, heartbeats, greetings. */
const OVERHEAD = 1 * MiB
/** Bytes of disk behind one bit of the map of changed regions on disk. */
const REGION = 4 * MiB

interface Pair {
  readonly proxy: CountingProxy
  primary: ReplicaHost
  secondary: ReplicaHost
}

/** A pair with an empty disk, which is known to be equal. */
async function startPair(scope: Scope, size = SIZE): Promise<Pair> {
  const [port = 0] = await freePorts(1)
  const proxy = await CountingProxy.listen(scope, port)
  const directory = await tempDirectory(scope)
  const options = {
    mode: 'colo' as const,
    disks: { a: size },
    settings: ['initial=identical'],
  }
  const secondary = await startHost(scope, options, directory, 'secondary', port)
  const primary = await startHost(scope, options, directory, 'primary', proxy.port)
  await protection(primary.qmp, 'protected')
  return { proxy, primary, secondary }
}

async function attach({ server }: ReplicaHost): Promise<NbdClient> {
  return NbdClient.connect({ address: { kind: 'unix', path: server.socket }, exportName: 'a' })
}

/** What a guest has written: pieces of 1 MiB of one value. */
interface Written {
  readonly places: readonly number[]
  readonly content: Buffer
}

/** Writes 100 MiB in pieces which lie side by side or all over the disk. */
async function write(host: ReplicaHost, seed: number, spread: boolean): Promise<Written> {
  const client = await attach(host)
  const random = seededRandom(seed)
  const start = below(random, 9000) * MiB + 64 * KiB
  const places = new Set<number>()
  while (places.size < CHANGED / REQUEST)
    places.add(spread ? below(random, SIZE / REQUEST) * REQUEST : start + places.size * REQUEST)
  const content = Buffer.alloc(REQUEST, 1 + below(random, 255))
  for (const place of places) await client.write(content, place)
  await client.disconnect()
  return { places: [...places], content }
}

/** Whether a guest of the secondary finds what a guest of the primary has written. */
async function has({ secondary }: Pair, { places, content }: Written): Promise<boolean> {
  const client = await attach(secondary)
  const found = Buffer.alloc(REQUEST)
  for (const place of places) {
    await client.read(found, place)
    if (!found.equals(content)) return false
  }
  await client.disconnect()
  return true
}

interface Status {
  readonly protection: string
  readonly checkpoint: number
  readonly error: string | null
  readonly recovery: { readonly unprotectedMs: number; readonly movedBytes: number } | null
  readonly verify: { readonly state: string } | null
  readonly disks: readonly { readonly dirtyBytes: number }[]
}

async function status(qmp: QmpClient): Promise<Status> {
  const { groups } = (await qmp.execute('replication-status')) as { groups: [Status] }
  return groups[0]
}

/** Bytes that go over the wire until the pair is protected again. */
async function movedUntilProtected({ proxy, primary }: Pair): Promise<number> {
  const before = proxy.passed
  proxy.plug()
  await protection(primary.qmp, 'protected')
  await primary.qmp.execute('replication-checkpoint')
  return proxy.passed - before
}

/** Both sides hold the same, as the command of an operator tells. */
async function areEqual(scope: Scope, { primary }: Pair): Promise<string> {
  const { code, stdout, stderr } = await colotap(scope, [
    'verify',
    '--control',
    primary.server.control,
  ])
  return code === 0 ? stdout.trim() : `exit ${code}: ${stderr}`
}

/** A disk small enough to be compared in no time. */
const SMALL = 256 * MiB
const EQUAL = 'both sides are equal: 256 MiB compared'

void t.test(
  'a link that was out moves what was written meanwhile, and says how long it was',
  async (t) => {
    const pair = await startPair(t)
    await pair.primary.qmp.execute('replication-checkpoint')
    pair.proxy.unplug()
    await linkLost(pair.primary.qmp)
    const written = await write(pair.primary, 1, true)
    t.equal((await status(pair.primary.qmp)).disks[0]?.dirtyBytes, CHANGED)
    const moved = await movedUntilProtected(pair)
    t.comment(`${(moved / MiB).toFixed(1)} MiB moved`)
    t.ok(moved >= CHANGED && moved < CHANGED + OVERHEAD, `${moved} bytes are about 100 MiB`)
    const { recovery } = await status(pair.primary.qmp)
    t.equal(recovery?.movedBytes, CHANGED)
    t.ok((recovery?.unprotectedMs ?? 0) > 0)
    const told = pair.primary.qmp.events.findLast(
      ({ event, data }) =>
        event === 'REPLICATION_PROTECTION' &&
        (data as { protection: string }).protection === 'protected',
    )
    t.same(
      (told?.['data'] as { recovery: unknown }).recovery,
      recovery,
      'the event says so as well',
    )
    t.ok(await has(pair, written))
  },
)

void t.test('disconnect ends protection until connect, on either side', async (t) => {
  const pair = await startPair(t)
  const { primary, secondary } = pair
  await primary.qmp.execute('replication-checkpoint')
  for (const side of [primary, secondary]) {
    const before = pair.proxy.passed
    await side.qmp.execute('replication-disconnect')
    await linkLost(primary.qmp)
    await linkLost(secondary.qmp)
    await t.rejects(primary.qmp.execute('replication-checkpoint'), 'nothing is protected')
    await side.qmp.execute('replication-disconnect')
    const written = await write(primary, 2, false)
    await side.qmp.execute('replication-connect')
    await protection(primary.qmp, 'protected')
    await protection(secondary.qmp, 'protected')
    await side.qmp.execute('replication-connect')
    await primary.qmp.execute('replication-checkpoint')
    const moved = pair.proxy.passed - before
    t.ok(await has(pair, written))
    t.ok(moved >= CHANGED && moved < CHANGED + OVERHEAD, `${moved} bytes are about 100 MiB`)
  }
})

void t.test('a primary that was killed sends the regions that it may have changed', async (t) => {
  const pair = await startPair(t)
  await pair.primary.qmp.execute('replication-checkpoint')
  pair.proxy.unplug()
  await linkLost(pair.primary.qmp)
  const written = await write(pair.primary, 3, false)
  pair.primary.server.child.signal('SIGKILL')
  await pair.primary.server.child.end()
  pair.primary = await restartHost(t, pair.primary)
  const dirty = (await status(pair.primary.qmp)).disks[0]?.dirtyBytes ?? 0
  t.ok(
    dirty >= CHANGED && dirty <= CHANGED + 2 * REGION,
    `${dirty} bytes are 100 MiB in whole regions`,
  )
  const moved = await movedUntilProtected(pair)
  t.comment(`${(moved / MiB).toFixed(1)} MiB moved`)
  t.ok(moved >= CHANGED && moved < CHANGED + 2 * REGION + OVERHEAD, `${moved} bytes`)
  t.ok(await has(pair, written))
})

void t.test('a secondary that was killed gets what it had not committed', async (t) => {
  const pair = await startPair(t)
  await write(pair.primary, 4, true)
  await pair.primary.qmp.execute('replication-checkpoint')
  const written = await write(pair.primary, 5, true)
  pair.secondary.server.child.signal('SIGKILL')
  await pair.secondary.server.child.end()
  await linkLost(pair.primary.qmp)
  pair.proxy.unplug()
  pair.secondary = await restartHost(t, pair.secondary)
  const moved = await movedUntilProtected(pair)
  t.comment(`${(moved / MiB).toFixed(1)} MiB moved`)
  t.ok(moved >= CHANGED && moved < CHANGED + OVERHEAD, `${moved} bytes are about 100 MiB`)
  t.ok(await has(pair, written))
})

void t.test(
  'what rots on the secondary is found and repaired, and a copy with checksums moves no more',
  async (t) => {
    const pair = await startPair(t, SMALL)
    const { primary, secondary, proxy } = pair
    const client = await attach(primary)
    await client.write(Buffer.alloc(8 * MiB, 7), 64 * MiB)
    await client.disconnect()
    await primary.qmp.execute('replication-checkpoint')
    t.equal(await areEqual(t, pair), EQUAL)
    const places = [65 * MiB + 5 * KiB, SMALL - 512]
    await rot(secondary, places)
    const control = ['--control', primary.server.control]
    const found = await colotap(t, ['verify', '--json', ...control])
    t.equal(found.code, 1)
    t.match(
      found.stderr,
      /the two sides differ in up to 32768 bytes: group test \(run it with --repair/,
    )
    t.match(JSON.parse(found.stdout), {
      state: 'different',
      differentBytes: 32 * KiB,
      ranges: [
        { disk: 'a', at: 65 * MiB, length: 16 * KiB },
        { disk: 'a', at: SMALL - 16 * KiB, length: 16 * KiB },
      ],
    })
    const text = await colotap(t, ['status', ...control])
    t.match(text.stdout, /error +verify: up to 32768 bytes of the secondary differ/)
    const repaired = await colotap(t, ['verify', '--repair', ...control])
    t.equal(repaired.code, 1, 'they did differ')
    t.match(repaired.stdout, /disk a: 16384 bytes at 68157440\n/)
    await protection(primary.qmp, 'protected')
    await primary.qmp.execute('replication-checkpoint')
    t.equal(await areEqual(t, pair), EQUAL)
    t.equal((await status(primary.qmp)).error, null)

    await rot(secondary, [7 * MiB])
    const before = proxy.passed
    const seen = primary.qmp.events.length
    const copied = await colotap(t, ['resync', '--checksums', ...control])
    t.equal(copied.code, 0)
    await primary.qmp.eventAfter(seen)
    await protection(primary.qmp, 'protected')
    const moved = proxy.passed - before
    t.comment(`${(moved / MiB).toFixed(1)} MiB moved for a copy of 256 MiB`)
    t.ok(moved < MiB, `${moved} bytes: one piece, and the questions`)
    t.equal(await areEqual(t, pair), EQUAL)
  },
)

/** Writes to the image behind the back of its server. */
async function rot({ images }: ReplicaHost, places: readonly number[]): Promise<void> {
  const image = await open(images['a'] ?? '', 'r+')
  for (const place of places) await image.write(Buffer.alloc(512, 0xee), 0, 512, place)
  await image.close()
}
