/**
 * The demo: two hosts on this machine, one VM's disks, checkpoints, a kill in mid-write, a takeover, and the proof.
 *
 * Every claim that is printed was checked just before; a check that fails throws, and the demo exits non-zero.
 */

import { randomBytes } from 'node:crypto'
import path from 'node:path'

import fs from 'fs-extra'

import { Fault } from '../../core/fault.ts'
import { KiB, MiB, formatSize } from '../../core/units.ts'
import { QmpClient, type ReceivedEvent } from '../../control/qmp-client.ts'
import { NbdClient } from '../../nbd/client.ts'
import { checkRing, RecordLog, RING_SIZE, type LogBounds } from './record-log.ts'
import {
  digest,
  FILESYSTEM_SIZE,
  makeFilesystem,
  type DiskState,
  type Filesystem,
} from './filesystem.ts'
import { formatsLine, makeImage, readImage, type HostFormats } from './disk-images.ts'
import { freePort, ServerProcess } from '../server-process.ts'

/** The ring and, behind it, a corner that only the secondary's own guest uses. */
const DATA_SIZE = RING_SIZE + 1 * MiB
const CORNER = RING_SIZE
const CHECKPOINTS = 8
const WRITES_IN_FLIGHT = 8

interface Host {
  readonly server: ServerProcess
  readonly control: QmpClient
  /** The filesystem's disk, and the one with the ring. */
  readonly root: NbdClient
  readonly data: NbdClient
}

interface Checkpoint {
  readonly checkpoint: number
  readonly pauseUs: number
  readonly bytes: number
}

export type Say = (line: string) => void

export async function tell(folder: string, formats: HostFormats, say: Say): Promise<void> {
  const filesystem = await makeFilesystem(folder, CHECKPOINTS + 1)
  say(
    `Disks: "root" (${formatSize(FILESYSTEM_SIZE)}, ${filesystem.description}) and "data" (${formatSize(DATA_SIZE)}); ${formatsLine(formats)}.`,
  )
  const started: ServerProcess[] = []
  try {
    const pair = await startPair(folder, formats, filesystem.image, started)
    const [secondary, primary] = started.map(({ pid }) => pid)
    say(
      `Hosts: primary is process ${primary ?? 0}, secondary is process ${secondary ?? 0}; one group, COLO.`,
    )
    await replicate(pair, filesystem, folder, formats, say)
  } finally {
    for (const server of started) await server.end('SIGKILL')
  }
}

interface Pair {
  readonly primary: Host
  readonly secondary: Host
  readonly linkLost: Promise<void>
}

async function startPair(
  folder: string,
  formats: HostFormats,
  image: string,
  started: ServerProcess[],
): Promise<Pair> {
  const port = await freePort()
  const lost = new EventWatch('REPLICATION_LINK', (data) => data['up'] === false)
  const shielded = new EventWatch(
    'REPLICATION_PROTECTION',
    (data) => data['protection'] === 'protected',
  )
  const secondary = await startHost(folder, 'secondary', formats, image, port, started, lost)
  const primary = await startHost(folder, 'primary', formats, image, port, started, shielded)
  if ((await groupStatus(primary.control))['protection'] !== 'protected') await shielded.happened
  return { primary, secondary, linkLost: lost.happened }
}

/** Waits for one event of a host. */
class EventWatch {
  readonly happened: Promise<void>
  readonly see: (event: ReceivedEvent) => void

  constructor(name: string, wanted: (data: ReceivedEvent['data']) => boolean) {
    let resolve: () => void
    this.happened = new Promise((happened) => (resolve = happened))
    this.see = ({ event, data }) => {
      if (event === name && wanted(data)) resolve()
    }
  }
}

async function startHost(
  folder: string,
  role: 'primary' | 'secondary',
  formats: HostFormats,
  image: string,
  port: number,
  started: ServerProcess[],
  watch: EventWatch,
): Promise<Host> {
  const root = path.join(folder, `${role}-root.img`)
  const data = path.join(folder, `${role}-data.img`)
  const format = formats[role]
  await makeImage(format, root, FILESYSTEM_SIZE, image)
  await makeImage(format, data, DATA_SIZE)
  const pipeline = (disk: string): string =>
    `colo:127.0.0.1:${port}?role=${role}&group=demo&initial=identical|${format.name}:${encodeURI(disk)}`
  const server = await ServerProcess.start(role, folder, {
    root: pipeline(root),
    data: pipeline(data),
  })
  started.push(server)
  const control = await QmpClient.connect(server.controlSocket, watch.see)
  const address = { kind: 'unix', path: server.nbdSocket } as const
  return {
    server,
    control,
    root: await NbdClient.connect({ address, exportName: 'root' }),
    data: await NbdClient.connect({ address, exportName: 'data' }),
  }
}

async function replicate(
  { primary, secondary, linkLost }: Pair,
  filesystem: Filesystem,
  folder: string,
  formats: HostFormats,
  say: Say,
): Promise<void> {
  const log = new RecordLog((from, at) => primary.data.write(from, at))
  const startedMs = performance.now()
  const pauses: number[] = []
  let bytes = 0
  let bounds: LogBounds = { acknowledged: 0, issued: 0 }
  for (const [index, state] of filesystem.states.slice(0, CHECKPOINTS).entries()) {
    await writeState(primary.root, state)
    if (index === 2) await showIsolation(primary, secondary, filesystem.states, index, say)
    const { acknowledged } = log
    const result = await checkpoint(primary.control)
    bounds = { acknowledged, issued: log.issued }
    pauses.push(result.pauseUs)
    bytes += result.bytes
    if (index === 2) await showDiscard(secondary, state, say)
  }
  const seconds = (performance.now() - startedMs) / 1000
  pauses.sort((a, b) => a - b)
  const milliseconds = (us: number | undefined): string => ((us ?? 0) / 1000).toFixed(2)
  say(
    `Checkpoints: ${CHECKPOINTS} committed while writing ${formatSize(bytes)} in ${seconds.toFixed(1)} s; a pause took ` +
      `${milliseconds(pauses[CHECKPOINTS >> 1])} ms (median), ${milliseconds(pauses.at(-1))} ms at most.`,
  )
  const own = randomBytes(4 * KiB)
  await secondary.data.write(own, CORNER)
  const killedMs = await killInMidWrite(primary, filesystem.states[CHECKPOINTS], log, say)
  await linkLost
  const downMs = await takeOver(secondary, killedMs, say)
  await prove(secondary, filesystem, bounds, own, folder, say)
  await checkImage(folder, formats, filesystem, say)
  say(
    `Time without a disk: ${downMs.toFixed(1)} ms from the kill to the first read served by the promoted secondary.`,
  )
}

async function writeState(disk: NbdClient, state: DiskState): Promise<void> {
  const queue = state.writes[Symbol.iterator]()
  const lane = async (): Promise<void> => {
    for (const { at, bytes } of queue) await disk.write(bytes, at)
  }
  await Promise.all(Array.from({ length: WRITES_IN_FLIGHT }, lane))
  await disk.flush()
}

async function checkpoint(control: QmpClient): Promise<Checkpoint> {
  const { checkpoint, pauseUs, bytes } = (await control.execute(
    'replication-checkpoint',
  )) as Record<string, unknown>
  return { checkpoint: Number(checkpoint), pauseUs: Number(pauseUs), bytes: Number(bytes) }
}

/** Between checkpoints the secondary's guest lives on the last one, whatever the primary writes. */
async function showIsolation(
  { root }: Host,
  secondary: Host,
  states: readonly DiskState[],
  index: number,
  say: Say,
): Promise<void> {
  const changed = states[index]?.writes[0]
  if (changed === undefined) throw new Fault('IO', 'the demo has nothing to show')
  const newer = Buffer.alloc(changed.bytes.length)
  const older = Buffer.alloc(changed.bytes.length)
  await root.read(newer, changed.at)
  await secondary.root.read(older, changed.at)
  const whole = await readDisk(secondary.root, FILESYSTEM_SIZE)
  ensure(newer.equals(changed.bytes), 'the primary reads back what it wrote')
  ensure(
    !older.equals(newer) && digest(whole) === states[index - 1]?.digest,
    `the secondary's guest sees checkpoint ${index}`,
  )
  await secondary.data.write(Buffer.alloc(4 * KiB, 'mine'), CORNER)
  say(
    `Isolation: the primary has written "${states[index]?.label ?? ''}"; the secondary's own guest still sees checkpoint ${index}, exactly.`,
  )
}

async function showDiscard(secondary: Host, state: DiskState, say: Say): Promise<void> {
  const corner = Buffer.alloc(4 * KiB, 0xff)
  await secondary.data.read(corner, CORNER)
  ensure(
    corner.every((byte) => byte === 0),
    "a checkpoint discards the secondary guest's own writes",
  )
  ensure(
    digest(await readDisk(secondary.root, FILESYSTEM_SIZE)) === state.digest,
    "the secondary's guest sees the new checkpoint",
  )
  say(
    'Discard: after the checkpoint its guest sees the new state, exactly, and its own writes are gone.',
  )
}

/** @returns when the signal was sent, in milliseconds */
async function killInMidWrite(
  { root, server, control, data }: Host,
  state: DiskState | undefined,
  log: RecordLog,
  say: Say,
): Promise<number> {
  const writes = state?.writes ?? []
  let acknowledged = 0
  let killedMs = 0
  const queue = writes[Symbol.iterator]()
  const lane = async (): Promise<void> => {
    for (const { at, bytes } of queue) {
      await root.write(bytes, at)
      acknowledged += 1
      if (acknowledged * 2 < writes.length || killedMs > 0) continue
      killedMs = performance.now()
      server.signal('SIGKILL')
    }
  }
  // The guest dies with its host: its writes under way fail, and that is all there is to say about them.
  await Promise.all(
    [lane(), lane(), lane(), lane()].map((running) => running.catch(() => undefined)),
  )
  await server.end('SIGKILL')
  for (const client of [root, data]) client.abandon()
  await control.close().catch(() => undefined)
  await log.stop()
  ensure(killedMs > 0, 'the primary was killed while it was writing')
  say(
    `Kill: SIGKILL to the primary in the middle of writing "${state?.label ?? ''}": ${acknowledged} of ${writes.length} blocks were acknowledged, and no checkpoint followed.`,
  )
  return killedMs
}

async function takeOver(secondary: Host, killedMs: number, say: Say): Promise<number> {
  const promotedMs = performance.now()
  await secondary.control.execute('replication-promote')
  await secondary.root.read(Buffer.alloc(4 * KiB), 0)
  const servedMs = performance.now()
  say(
    `Promote: the secondary took over and served its first read ${(servedMs - promotedMs).toFixed(1)} ms after the command.`,
  )
  return servedMs - killedMs
}

async function prove(
  secondary: Host,
  filesystem: Filesystem,
  bounds: LogBounds,
  own: Buffer,
  folder: string,
  say: Say,
): Promise<void> {
  const status = await groupStatus(secondary.control)
  ensure(
    status['checkpoint'] === CHECKPOINTS && status['role'] === 'active',
    'the secondary is active at the last checkpoint',
  )
  const root = await readDisk(secondary.root, FILESYSTEM_SIZE)
  ensure(
    digest(root) === filesystem.states[CHECKPOINTS - 1]?.digest,
    'the disk is byte for byte the last checkpoint',
  )
  const recovered = path.join(folder, 'recovered.img')
  await fs.outputFile(recovered, root)
  say(
    `Proof: "root" is byte for byte checkpoint ${CHECKPOINTS}: every checkpointed byte there, nothing later there.`,
  )
  for (const line of await filesystem.check(recovered, CHECKPOINTS - 1)) say(`       ${line}.`)
  const records = checkRing(await readDisk(secondary.data, RING_SIZE), bounds)
  say(
    `       "data" holds ${records} records: all that were acknowledged before the checkpoint, none issued after it.`,
  )
  const corner = Buffer.alloc(own.length)
  await secondary.data.read(corner, CORNER)
  ensure(corner.equals(own), "the secondary guest's own writes since the checkpoint stay")
  await secondary.data.write(Buffer.alloc(4 * KiB, 'onward'), CORNER)
  await secondary.data.flush()
  await secondary.control.close()
  await Promise.all([secondary.root.disconnect(), secondary.data.disconnect()])
  await secondary.server.end('SIGTERM')
  ensure(secondary.server.endedWell, 'the promoted server ends cleanly')
}

async function checkImage(
  folder: string,
  { secondary }: HostFormats,
  filesystem: Filesystem,
  say: Say,
): Promise<void> {
  const disk = await readImage(secondary, path.join(folder, 'secondary-root.img'))
  ensure(
    digest(disk) === filesystem.states[CHECKPOINTS - 1]?.digest,
    'the image file is the last checkpoint',
  )
  say('       The promoted disk takes writes; after a clean end its image files hold the same.')
}

async function readDisk(disk: NbdClient, size: number): Promise<Buffer> {
  const bytes = Buffer.alloc(size)
  for (let at = 0; at < size; at += MiB)
    await disk.read(bytes.subarray(at, Math.min(size, at + MiB)), at)
  return bytes
}

async function groupStatus(control: QmpClient): Promise<Record<string, unknown>> {
  const { groups } = (await control.execute('replication-status')) as {
    groups: Record<string, unknown>[]
  }
  return groups[0] ?? {}
}

/** @throws Fault when a promise of the demo does not hold */
function ensure(holds: boolean, promise: string): void {
  if (!holds) throw new Fault('IO', `VIOLATION: it is not true that ${promise}`)
}
