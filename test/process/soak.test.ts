/** `colotap soak` as users run it: it finds nothing where nothing is wrong, finds what is, and leaves nothing behind. */

import { existsSync, readdirSync } from 'node:fs'
import { open, readFile } from 'node:fs/promises'
import path from 'node:path'
import t, { type Test } from 'tap'
import { FAULT_NAMES } from '../../cli/soak/faults.ts'
import { startChild, type Child, type Result } from '../support/child.ts'
import { PROJECT } from '../support/colotap.ts'
import { groupState, startPair, type ReplicaPair } from '../support/replica-pair.ts'
import { tempDirectory } from '../support/scope.ts'

const LAUNCHER = path.join(PROJECT, 'bin', 'colotap')
const SMALL = ['--size', '2M', '--depth', '4']
const MiB = 1024 * 1024

/** A soak may take this long, also on a machine that has much else to do. */
const PATIENCE_MS = 600_000

interface Report {
  readonly seed: number
  readonly finished: boolean
  readonly rounds: Readonly<Record<string, number>>
  readonly writes: number
  readonly reads: number
  readonly bytesCompared: number
  readonly checkpoints: number
  readonly pauseUs: { readonly p50: number; readonly p99: number; readonly most: number }
  readonly commitUs: { readonly p50: number; readonly p99: number }
  readonly violations: readonly string[]
}

function soak(t: Test, ...args: string[]): Child {
  return startChild(t, process.execPath, [LAUNCHER, 'soak', ...args], {})
}

function reportIn({ stdout }: Result): Report {
  return JSON.parse(stdout) as Report
}

/** The command lines of processes that have `text` in them. */
async function processesWith(text: string): Promise<string[]> {
  const found: string[] = []
  for (const pid of readdirSync('/proc').filter((name) => /^\d+$/.test(name))) {
    // A process that has ended meanwhile is none.
    const line = await readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '')
    if (line.includes(text)) found.push(line.replaceAll('\0', ' '))
  }
  return found
}

for (const mode of ['colo', 'remus'])
  void t.test(`a ${mode} pair survives every kind of fault`, async (t) => {
    const folder = await tempDirectory(t)
    const rounds = String(FAULT_NAMES.length)
    const options = ['--mode', mode, '--rounds', rounds, '--dir', folder, '--json', ...SMALL]
    const result = await soak(t, ...options).end(PATIENCE_MS)
    t.equal(result.code, 0, result.stderr)
    const report = reportIn(result)
    t.same(report.violations, [])
    t.same(Object.keys(report.rounds).sort(), [...FAULT_NAMES].sort(), 'each kind once')
    t.equal(report.finished, true)
    t.ok(report.writes > 100 && report.reads > 10 && report.checkpoints > FAULT_NAMES.length)
    t.ok(report.bytesCompared >= 2 * FAULT_NAMES.length * 2 * MiB, 'each round was compared')
    t.ok(report.pauseUs.p50 > 0 && report.pauseUs.p99 >= report.pauseUs.p50)
    t.ok(report.commitUs.p99 >= report.commitUs.p50)
    t.same(readdirSync(folder), [], 'nothing is left')
  })

/** Changes a byte that nobody writes; the guest does not use the end of a disk. */
async function damage(image: string): Promise<void> {
  const file = await open(image, 'r+')
  await file.write(Buffer.from([0xff]), 0, 1, 2 * MiB - 1)
  await file.close()
}

for (const { mode, host } of [
  { mode: 'colo', host: 'west' },
  { mode: 'colo', host: 'east' },
  { mode: 'remus', host: 'west' },
])
  void t.test(`one damaged byte in an image of the ${mode} host ${host} is found`, async (t) => {
    const folder = await tempDirectory(t)
    const options = ['--faults', 'none', '--rounds', '100000', '--seed', '4711', '--mode', mode]
    const child = soak(t, ...options, '--dir', folder, ...SMALL)
    await child.showed('round 1 (quiet)')
    const [images] = readdirSync(folder)
    await damage(path.join(folder, images!, host, 'disk1.img'))
    const { code, stdout, stderr } = await child.end(PATIENCE_MS)
    t.equal(code, 1)
    t.match(stderr, /^colotap: the soak found a violation: .*\n$/)
    t.match(stderr, /disk1.* block 4095 \(512 bytes at 2096640\) holds/)
    t.match(stderr, /--seed 4711/)
    t.match(stdout, /1 VIOLATION$/m)
    t.match(stdout, /^ {2}seed +4711$/m)
    t.match(stderr, new RegExp(`images in ${path.join(folder, images!)}`))
    t.ok(existsSync(path.join(folder, images!, host, 'disk1.img')), 'the evidence is kept')
    t.same(await processesWith(folder), [], 'and no process')
  })

for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const)
  void t.test(`${signal} ends a soak with its report, and nothing is left`, async (t) => {
    const folder = await tempDirectory(t)
    const child = soak(t, '--rounds', '100000', '--dir', folder, ...SMALL)
    await child.showed('round 2 ')
    child.signal(signal)
    const { code, stdout, stderr } = await child.end(PATIENCE_MS)
    t.equal(code, 1)
    t.match(stdout, /not to its end: no violation/)
    t.match(
      stderr,
      /^colotap: the soak was interrupted before its end; it had found no violation\n$/,
    )
    t.same(readdirSync(folder), [])
    t.same(await processesWith(folder), [])
  })

function endpoints({ primary, secondary }: ReplicaPair): string[] {
  const of = ({ server }: ReplicaPair['primary']): string =>
    `unix:${server.socket},${server.control}`
  return ['--primary', of(primary), '--secondary', of(secondary), '--overwrite']
}

void t.test('a pair that runs already is tested and stays as it is', async (t) => {
  const pair = await startPair(t, { mode: 'colo', disks: { root: 3 * MiB, data: 2 * MiB } })
  const given = endpoints(pair)
  const options = ['--rounds', '3', '--json', '--interval', '5', ...SMALL]
  const result = await soak(t, ...given, ...options).end(PATIENCE_MS)
  t.equal(result.code, 0, result.stderr)
  t.match(reportIn(result), { finished: true, rounds: { quiet: 3 }, violations: [] })
  t.match(await groupState(pair.secondary.qmp), { role: 'secondary', protection: 'protected' })
  const again = await soak(t, ...given, '--rounds', '1', '--promote', ...SMALL).end(PATIENCE_MS)
  t.equal(again.code, 0, `what an earlier soak has left does not matter: ${again.stderr}`)
  t.match(await groupState(pair.secondary.qmp), { role: 'active' })
})

void t.test('damage on a given pair is found', async (t) => {
  const pair = await startPair(t, { mode: 'colo', disks: { root: 2 * MiB, data: 2 * MiB } })
  const child = soak(t, ...endpoints(pair), '--rounds', '100000', ...SMALL)
  await child.showed('round 1 ')
  await damage(pair.secondary.images['data']!)
  const { code, stderr } = await child.end(PATIENCE_MS)
  t.equal(code, 1)
  t.match(stderr, /secondary, disk data: block 4095/)
})

void t.test('what cannot be tested is refused with advice', async (t) => {
  const pair = await startPair(t, { mode: 'remus', disks: { root: 2 * MiB } })
  const [, primary, , secondary] = endpoints(pair)
  const cases: [string[], RegExp][] = [
    [['--primary', primary!, '--secondary', secondary!], /overwrites the disks.*--overwrite/],
    [endpoints(pair), /Remus secondary shows nothing.*--promote/],
    [
      ['--primary', secondary!, '--secondary', primary!, '--overwrite'],
      /given as the primary is secondary/,
    ],
    [['--primary', 'unix:/x,/nowhere', '--secondary', secondary!, '--overwrite'], /nowhere/],
    [['--dir', '/nowhere/at/all'], /nowhere/],
    [['--set', 'colour=red'], /colour/],
    [
      ['--faults', 'kill-secondary', '--set', 'durability=memory'],
      /checkpoints in memory die with the secondary/,
    ],
  ]
  for (const [args, message] of cases) {
    const { code, stderr } = await soak(t, ...args).end()
    t.equal(code, 1, args.join(' '))
    t.match(stderr, /^colotap: [^\n]+\n$/)
    t.match(stderr, message)
  }
})
