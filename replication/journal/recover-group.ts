/** Brings the disks of a group to what their journal says, and opens the journal for what comes. */

import { Fault } from '../../core/fault.ts'
import type { PageMemory } from '../../ramdisk/page-memory.ts'
import type { DiskLayers } from '../../ramdisk/disk-layers.ts'
import type { GroupEnvironment } from '../environment.ts'
import { PUNCH, type Frame } from '../machine/frame.ts'
import { Journal } from './journal.ts'
import type { Apart } from '../machine/disk-sets.ts'
import type { DiskIdentity } from '../machine/handshake.ts'
import { FRESH, type ReplicaState } from '../machine/replica-state.ts'
import type { JournalIdentity } from './records.ts'
import { replay, scan, type Recovered } from './recovery.ts'
import type { SegmentStore } from './segments.ts'

interface RecoveredDisk {
  readonly name: string
  readonly geometry: { readonly size: number }
  readonly layers: DiskLayers
  flushed: number
}

interface RecoverOptions {
  readonly group: string
  readonly disks: readonly RecoveredDisk[]
  readonly memory: PageMemory
  readonly environment: GroupEnvironment
  /** Bytes that the journal may grow to. */
  readonly limit: number
  readonly onFailure: (fault: Fault) => void
}

/** @throws Fault when there is a journal and it is damaged, belongs to other disks, or cannot be read or written */
export async function recoverJournal(
  options: RecoverOptions,
): Promise<{ journal: Journal; state: ReplicaState }> {
  const { group, disks, environment, limit, onFailure } = options
  const { logger } = environment
  const store = await environment.openSegments(group)
  try {
    const recovered = await scan(store)
    const identity = {
      group,
      disks: disks.map(({ name, geometry }) => ({ name, size: geometry.size })),
    }
    const state = recovered === undefined ? FRESH : adapted(identity, recovered, store)
    for (const disk of disks) disk.flushed = flushedOf(recovered, disk.name)
    const replica = recovered?.header.replica ?? environment.newId()
    if (recovered !== undefined) await replayInto(options, recovered, store)
    const flushed = disks.map((disk) => disk.flushed)
    let started = false
    const journal = new Journal({
      ...{ store, identity, replica, state, limit, logger },
      recovered: recovered === undefined ? undefined : { ...recovered, flushed },
      onFailure: (fault) => {
        if (started) onFailure(fault)
      },
    })
    await begin(journal, disks)
    started = true
    const committed = recovered?.committed ?? 0
    if (recovered !== undefined)
      logger.info({ group, checkpoint: committed, place: store.place }, 'journal recovered')
    return { journal, state }
  } catch (error) {
    await store.close()
    throw error
  }
}

/** Begins the journal; where there is no space for that, after the images have taken what fills it. */
async function begin(journal: Journal, disks: readonly RecoveredDisk[]): Promise<void> {
  try {
    await journal.restart()
    return
  } catch (error) {
    if (!(error instanceof Fault) || error.code !== 'NO_SPACE') throw error
  }
  for (const [index, { layers }] of disks.entries()) {
    await layers.idle()
    journal.flushed(index, disks[index]?.flushed ?? 0)
  }
  await journal.restart()
}

/**
 * What the disks that are served have become since the journal was written: one that was added stands apart, one that
 * stood apart may be gone, and one may have grown.
 * @throws Fault when a disk of the journal is missing or has shrunk: what is remembered would be wrong without it
 */
function adapted(
  ours: JournalIdentity,
  { header, state }: Recovered,
  store: SegmentStore,
): ReplicaState {
  const text = ({ group, disks }: JournalIdentity): string =>
    `group "${group}" with ${disks
      .map(({ name, size }) => `"${name}" of ${size} bytes`)
      .sort()
      .join(', ')}`
  const fits =
    ours.group === header.group &&
    header.disks.every(({ name, size }) => {
      const here = ours.disks.find((disk) => disk.name === name)
      return here === undefined ? state.apart[name] !== undefined : here.size >= size
    })
  if (!fits)
    throw new Fault('INVALID', `the journal belongs to ${text(header)}, not to ${text(ours)}`, {
      where: store.place,
      remedy: 'serve those disks, give another --state-dir, or move that folder away',
    })
  const standing = state.role === 'secondary' ? 'partial' : 'new'
  const apart: Record<string, Apart> = {}
  for (const { name } of ours.disks) {
    const known = header.disks.some((disk) => disk.name === name)
    const stands = known ? state.apart[name] : standing
    if (stands !== undefined) apart[name] = stands
  }
  return { ...state, apart }
}

/** A disk that the journal does not know has nothing in it. */
function flushedOf(recovered: Recovered | undefined, name: string): number {
  const index = recovered?.header.disks.findIndex((disk) => disk.name === name) ?? -1
  return (index === -1 ? recovered?.committed : recovered?.flushed[index]) ?? 0
}

/**
 * Has the images take what the memory holds: also of an epoch that goes on, which may be larger than the memory. Its rest
 * follows before anybody is served, and the journal has all of it until then.
 */
async function makeRoom(disks: readonly RecoveredDisk[]): Promise<void> {
  for (const { layers } of disks) layers.flushReceived()
  await Promise.all(disks.map(({ layers }) => layers.idle()))
}

async function replayInto(
  { disks, memory }: RecoverOptions,
  { epochs }: Recovered,
  store: SegmentStore,
): Promise<void> {
  await replay(
    store,
    epochs,
    async (record: Frame, checkpoint: number, theirs: readonly DiskIdentity[]) => {
      if (record.type !== 'write' && record.type !== 'zero') return
      const disk = disks.find(({ name }) => name === theirs[record.disk]?.name)
      // It was removed since.
      if (disk === undefined) return
      // The image has it, and perhaps what an active guest wrote later.
      if (checkpoint <= disk.flushed) return
      if (!memory.canHold(record.payload.length)) await makeRoom(disks)
      const { layers } = disk
      if (record.type === 'write') layers.receiveWrite(record.payload, record.position)
      else layers.receiveZero(record.position, record.extent, (record.flags & PUNCH) !== 0)
    },
    (checkpoint) => {
      for (const { layers } of disks) {
        layers.cut()
        layers.seal(checkpoint)
      }
    },
  )
}
