/** Brings the disks of a group to what their journal says, and opens the journal for what comes. */

import { Fault } from '../../core/fault.ts'
import type { PageMemory } from '../../ramdisk/page-memory.ts'
import type { DiskLayers } from '../../ramdisk/disk-layers.ts'
import type { GroupEnvironment } from '../environment.ts'
import { PUNCH, type Frame } from '../machine/frame.ts'
import { Journal } from './journal.ts'
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
    if (recovered !== undefined) {
      checkIdentity(identity, recovered.header, store)
      for (const disk of disks) disk.flushed = recovered.flushed[orderOf(recovered, disk.name)] ?? 0
    }
    const replica = recovered?.header.replica ?? environment.newId()
    const state = recovered?.state ?? FRESH
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

function orderOf({ header }: Recovered, name: string): number {
  return header.disks.findIndex((disk) => disk.name === name)
}

function checkIdentity(ours: JournalIdentity, theirs: JournalIdentity, store: SegmentStore): void {
  const text = ({ group, disks }: JournalIdentity): string =>
    `group "${group}" with ${disks
      .map(({ name, size }) => `"${name}" of ${size} bytes`)
      .sort()
      .join(', ')}`
  if (text(ours) === text(theirs)) return
  throw new Fault('INVALID', `the journal belongs to ${text(theirs)}, not to ${text(ours)}`, {
    where: store.place,
    remedy: 'serve those disks, give another --state-dir, or move that folder away',
  })
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
  { epochs, header }: Recovered,
  store: SegmentStore,
): Promise<void> {
  const layersOf = header.disks.map(({ name }) => disks.find((disk) => disk.name === name)?.layers)
  await replay(
    store,
    epochs,
    async (record: Frame, checkpoint: number) => {
      if (record.type !== 'write' && record.type !== 'zero') return
      // The image has it, and perhaps what an active guest wrote later.
      if (checkpoint <= (header.flushed[record.disk] ?? 0)) return
      if (!memory.canHold(record.payload.length)) await makeRoom(disks)
      const layers = layersOf[record.disk]
      if (record.type === 'write') layers?.receiveWrite(record.payload, record.position)
      else layers?.receiveZero(record.position, record.extent, (record.flags & PUNCH) !== 0)
    },
    (checkpoint) => {
      for (const { layers } of disks) {
        layers.cut()
        layers.seal(checkpoint)
      }
    },
  )
}
