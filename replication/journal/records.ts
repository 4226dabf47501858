/**
 * The records of a journal. They have the framing of the replication link (machine/frame.ts), checksums included:
 *
 *   segment     first in each segment, position = its number; payload: SegmentHeader
 *   write, zero as received
 *   checkpoint  the epoch that ends here is committed, position = its number; payload: the ReplicaState from then on
 *   discard     what came since the last checkpoint record never happened
 *   done        position = a checkpoint that was reported as committed, so that its record must be there
 *   state       payload: ReplicaState; the newest one counts
 */

import { Fault } from '../../core/fault.ts'
import { objectOf, parseFields, textOf, wholeOf } from '../machine/fields.ts'
import { frame, type Frame } from '../machine/frame.ts'
import type { DiskIdentity } from '../machine/handshake.ts'
import { replicaStateOf, type ReplicaState } from '../machine/replica-state.ts'

/** Which disks a journal belongs to. */
export interface JournalIdentity {
  readonly group: string
  readonly disks: readonly DiskIdentity[]
}

export interface SegmentHeader extends JournalIdentity {
  readonly format: 1
  /** Made when the journal was begun. */
  readonly replica: string
  /** The last checkpoint whose record lies in an earlier segment; later records there never counted. */
  readonly committed: number
  /** By disk: checkpoints up to this one are in its image. */
  readonly flushed: readonly number[]
  /**
   * Bytes of the segment before, all of which count; null when it broke off, by a crash or a failed write: then
   * what follows its last checkpoint never happened.
   */
  readonly previousLength: number | null
  readonly state: ReplicaState
}

export function segmentRecord(number: number, header: SegmentHeader): Frame {
  return frame('segment', { position: number, payload: Buffer.from(JSON.stringify(header)) })
}

export function stateRecord(state: ReplicaState): Frame {
  return frame('state', { payload: Buffer.from(JSON.stringify(state)) })
}

/** @throws Fault PROTOCOL naming the field that is wrong */
export function decodeSegmentHeader(payload: Buffer): SegmentHeader {
  const fields = parseFields(payload, 'journal segment')
  const format = fields['format']
  if (format !== 1) throw new Fault('NOT_SUPPORTED', `a journal of format ${String(format)}`)
  const disks = fields['disks']
  if (!Array.isArray(disks)) throw new Fault('PROTOCOL', 'malformed journal segment: disks')
  return {
    format,
    group: textOf(fields['group'], 'segment.group'),
    disks: disks.map((disk: unknown) => {
      const { name, size } = objectOf(disk, 'segment.disks')
      return { name: textOf(name, 'segment.disks.name'), size: wholeOf(size, 'segment.disks.size') }
    }),
    replica: textOf(fields['replica'], 'segment.replica'),
    committed: wholeOf(fields['committed'], 'segment.committed'),
    flushed: disks.map((_, disk) =>
      wholeOf((fields['flushed'] as unknown[] | undefined)?.[disk], 'segment.flushed'),
    ),
    previousLength:
      fields['previousLength'] === null
        ? null
        : wholeOf(fields['previousLength'], 'segment.previousLength'),
    state: replicaStateOf(objectOf(fields['state'], 'segment.state'), 'segment.state'),
  }
}

/** The epoch before it is committed, and the replica is what `state` says. */
export function commitRecord(checkpoint: number, state: ReplicaState): Frame {
  return frame('checkpoint', { position: checkpoint, payload: Buffer.from(JSON.stringify(state)) })
}

/** @throws Fault PROTOCOL naming the field that is wrong */
export function decodeState(payload: Buffer): ReplicaState {
  return replicaStateOf(parseFields(payload, 'state'), 'state')
}
