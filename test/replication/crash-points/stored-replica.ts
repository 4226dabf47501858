/** A replica whose storage is recorded, with a peer that is played by the test. */

import type { BlockDevice } from '../../../core/block-device.ts'
import { SILENT } from '../../../core/logger.ts'
import { GiB, KiB, MiB, SECTOR } from '../../../core/units.ts'
import type { Dial, Link, LinkHandlers } from '../../../replication/environment.ts'
import { frame, type Frame } from '../../../replication/machine/frame.ts'
import { encodeHello, type Hello } from '../../../replication/machine/handshake.ts'
import { ReplicaGroup } from '../../../replication/replica-group.ts'
import { ManualClock } from '../../support/manual-clock.ts'
import { turn } from './recorded-files.ts'
import type { RecordedStorage } from './recorded-storage.ts'

export const DISKS = 2
export const SECTORS = 12
const DISK_NAMES = Array.from({ length: DISKS }, (_, disk) => String(disk))

/** Many segments, of 2 KiB each; and one, so that the sync of the next one's name does not make others last. */
const JOURNAL = { secondary: 8 * KiB, primary: 1 * GiB }

export interface StoredReplica {
  readonly group: ReplicaGroup
  readonly disks: readonly BlockDevice[]
  readonly clock: ManualClock
}

export interface StoredOptions {
  /** As a secondary it holds no received data in memory. */
  readonly spills?: boolean
  /** The disks that it has: their images are the ones of these numbers. */
  readonly disks?: readonly string[]
  /** As openImage() has it, for every image but the first. */
  readonly slowness?: number
}

/**
 * Starts a process on what is stored.
 * @param dial how it reaches its peer, as a primary
 */
export async function startOn(
  storage: RecordedStorage,
  role: 'primary' | 'secondary',
  dial?: Dial,
  { spills = false, disks: names = DISK_NAMES, slowness = 0 }: StoredOptions = {},
): Promise<StoredReplica> {
  const clock = new ManualClock()
  let ids = 0
  const group = new ReplicaGroup(
    {
      ...{ group: 'vm', mode: 'colo', role, peer: null, listens: true },
      ...(spills ? { spillBytes: 0 } : {}),
      ...{ memory: 8 * MiB, durability: 'journal', journal: JOURNAL[role], identical: true },
      ...{ heartbeatMs: 1e9, timeoutMs: 1e9, intervalMs: 0, onLinkLoss: 'continue' },
      ...{ wire: 'colotap', fence: null, partBytes: 64 * MiB, resyncRate: 0 },
      ...{ ack: 'sent', compareBytes: MiB, comparesFirst: false },
    },
    {
      logger: SILENT,
      newId: () => `${role} ${storage.steps} ${(ids += 1)}`,
      timers: clock,
      nowMs: clock.nowMs,
      onEvent: () => undefined,
      removeRegions: (_, disk) => storage.removeRegions(disk),
      hasSegments: () => Promise.resolve(false),
      fence: () => Promise.resolve({ fenced: false, detail: '' }),
      openSegments: () => storage.openSegments(),
      openRegions: (_, disk, size, fresh) => storage.openRegions(disk, size, fresh),
    },
    dial,
  )
  const disks: BlockDevice[] = []
  for (const [index, name] of names.entries())
    disks.push(
      group.attach(name, await storage.openImage(Number(name), index === 0 ? 0 : slowness)),
    )
  await group.start()
  return { group, disks, clock }
}

/** What a guest of the replica would read, a number for each sector. */
export async function contentOf({ group }: StoredReplica): Promise<number[][]> {
  const contents: number[][] = []
  for (const { layers } of group.secondary.disks) {
    const bytes = Buffer.alloc(SECTORS * SECTOR)
    await layers.read(bytes, 0)
    contents.push(tagsOf(bytes))
  }
  return contents
}

/** The first byte of each sector; -1 where a sector is not of one piece. */
export function tagsOf(bytes: Buffer): number[] {
  return Array.from({ length: bytes.length / SECTOR }, (_, sector) => {
    const part = bytes.subarray(sector * SECTOR, (sector + 1) * SECTOR)
    const [tag = -1] = part
    return part.equals(Buffer.alloc(SECTOR, tag)) ? tag : -1
  })
}

/** Images in which each sector has a number of its own. */
export function firstContents(): Buffer[] {
  return Array.from({ length: DISKS }, (_, disk) =>
    Buffer.concat(
      Array.from({ length: SECTORS }, (_, sector) =>
        Buffer.alloc(SECTOR, 100 + disk * SECTORS + sector),
      ),
    ),
  )
}

/** The replica's end of a connection; the test is the peer. */
class PeerLink implements Link {
  readonly peer = 'peer'
  closed = false
  readonly #heard: (frame: Frame) => void

  constructor(heard: (frame: Frame) => void) {
    this.#heard = heard
  }

  send(outgoing: Frame): void {
    this.#heard({ ...outgoing, payload: Buffer.from(outgoing.payload) })
  }

  sendData(outgoing: Frame, handed: () => void): void {
    this.send(outgoing)
    handed()
  }

  pause(): void {
    return undefined
  }

  resume(): void {
    return undefined
  }

  close(): void {
    this.closed = true
  }
}

function helloOf(role: 'primary' | 'secondary'): Hello {
  const fresh = role === 'secondary'
  return {
    protocol: { min: 1, max: 1 },
    ...{ group: 'vm', mode: 'colo', role, replica: `the test's ${role}` },
    ...{ generation: fresh ? null : 'g1', history: [], checkpoint: 0, announced: 0, term: 1 },
    ...{ consistent: true, wrote: !fresh, capacity: fresh ? 4 * MiB : 0, durable: fresh },
    ...{ discard: null, identical: true, ack: 'sent', features: [] },
    disks: Array.from({ length: DISKS }, (_, disk) => ({
      name: String(disk),
      size: SECTORS * SECTOR,
    })),
  }
}

/** A primary that the test plays: gives the secondary frames. */
export function leadOn(
  { group }: StoredReplica,
  heard: (frame: Frame) => void,
): { tell: (frame: Frame) => void } {
  const handlers = group.take(new PeerLink(heard), helloOf('primary'))
  handlers.frame(frame('synced'))
  return { tell: (outgoing) => handlers.frame(outgoing) }
}

/** A secondary that the test plays: commits each checkpoint as it comes, unless it is not there. */
export class PlayedSecondary {
  /** Whether it can be reached. */
  present = true
  /** The last checkpoint that it said was done. */
  done = 0
  #handlers: LinkHandlers | undefined

  readonly dial: Dial = (connected, failed) => {
    void turn().then(() => {
      if (!this.present) return failed('no route to host')
      connected((handlers) => {
        this.#handlers = handlers
        return new PeerLink((frame) => this.#answer(frame))
      })
    })
    return () => undefined
  }

  lose(): void {
    this.present = false
    this.#handlers?.closed('the link was cut')
    this.#handlers = undefined
  }

  #answer({ type, position }: Frame): void {
    if (type === 'hello') {
      this.#say(frame('hello', { payload: encodeHello(helloOf('secondary')) }))
      this.#say(frame('ready'))
    }
    if (type === 'checkpoint') {
      this.done = position
      this.#say(frame('done', { position }))
    }
  }

  #say(frame: Frame): void {
    void turn().then(() => this.#handlers?.frame(frame))
  }
}
