/** A replication group that does what a test tells it, and remembers what was asked of it. */

import type { ControlContext } from '../../control/command.ts'
import { Fault } from '../../core/fault.ts'
import type {
  CheckpointResult,
  GroupChanges,
  GroupRole,
  GroupStatus,
  ReplicationGroup,
} from '../../replication/group.ts'

export class FakeGroup implements ReplicationGroup {
  readonly name: string
  readonly calls: string[] = []
  state: GroupStatus
  /** What the next checkpoints give; replaced by tests. */
  onCheckpoint: () => Promise<CheckpointResult> = () => this.commit()
  promotion: Fault | undefined

  constructor(name: string, state: Partial<GroupStatus> = {}) {
    this.name = name
    this.state = {
      group: name,
      mode: 'colo',
      ack: 'sent',
      role: 'primary',
      protection: 'protected',
      reason: null,
      checkpoint: 0,
      term: 1,
      durable: true,
      peer: '127.0.0.1:9000',
      disks: [{ name: 'disk0', size: 1 << 30, dirtyBytes: 4096, standing: 'whole' }],
      heals: true,
      refused: false,
      leaving: false,
      checkpoints: null,
      resync: null,
      verify: null,
      recovery: null,
      ramdiskBytes: 0,
      spilledBytes: 0,
      journalBytes: 0,
      error: null,
      alarms: [],
      ...state,
    }
  }

  status(): GroupStatus {
    return this.state
  }

  acknowledge(): GroupStatus {
    this.calls.push('acknowledge')
    this.state = { ...this.state, alarms: [] }
    return this.state
  }

  checkpoint(timeoutMs: number | undefined): Promise<CheckpointResult> {
    this.calls.push(`checkpoint ${timeoutMs ?? 'without limit'}`)
    return this.onCheckpoint()
  }

  promote(force: boolean): Promise<GroupStatus> {
    this.calls.push(`promote ${force ? 'by force' : 'gently'}`)
    if (this.promotion !== undefined) return Promise.reject(this.promotion)
    this.become('active')
    return Promise.resolve(this.state)
  }

  demote(force: boolean): Promise<GroupStatus> {
    this.calls.push(`demote ${force ? 'by force' : 'gently'}`)
    this.become('secondary')
    return Promise.resolve(this.state)
  }

  resolveSplit(discard: 'local' | 'remote'): Promise<GroupStatus> {
    this.calls.push(`discard ${discard}`)
    return Promise.resolve(this.state)
  }

  switchover(timeoutMs: number | undefined): Promise<GroupStatus> {
    this.calls.push(`switchover ${timeoutMs ?? 'without limit'}`)
    this.become('secondary')
    return Promise.resolve(this.state)
  }

  configure(changes: GroupChanges): GroupStatus {
    this.calls.push(`configure ${JSON.stringify(changes)}`)
    return this.state
  }

  resync(checksums: boolean): Promise<GroupStatus> {
    this.calls.push(checksums ? 'resync with checksums' : 'resync')
    return Promise.resolve(this.state)
  }

  verify(wish: 'compare' | 'repair' | 'cancel'): GroupStatus {
    this.calls.push(`verify: ${wish}`)
    return this.state
  }

  setReplicating(on: boolean): void {
    this.calls.push(on ? 'start' : 'stop')
  }

  become(role: GroupRole): void {
    this.state = { ...this.state, role, term: this.state.term + 1 }
  }

  commit(): Promise<CheckpointResult> {
    this.state = { ...this.state, checkpoint: this.state.checkpoint + 1 }
    return Promise.resolve({
      checkpoint: this.state.checkpoint,
      pauseUs: 900,
      commitUs: 400,
      bytes: 8192,
    })
  }
}

export function lost(): Fault {
  return new Fault('LINK_LOST', 'the secondary is gone', { where: 'group vm1' })
}

/** A server of these groups, and one export; counts how often it was told to quit, and what of exports. */
export function contextOf(
  ...groups: FakeGroup[]
): ControlContext & { quits: number; changes: string[] } {
  const changes: string[] = []
  return {
    quits: 0,
    changes,
    addExport: (added) => Promise.resolve(void changes.push(`add ${JSON.stringify(added)}`)),
    removeExport: (name, force) =>
      Promise.resolve(void changes.push(`remove ${name}${force ? ' by force' : ''}`)),
    resizeExport: (name, size) => Promise.resolve(void changes.push(`resize ${name} to ${size}`)),
    groups: () => groups,
    exports: () => [
      {
        ...{ name: 'disk0', size: 1 << 30, readOnly: false, connections: 2 },
        ...{ state: 'serving', pipeline: 'ram:1G', error: null },
      },
    ],
    pipelines: () => [],
    changeLogs: () => [],
    quit() {
      this.quits += 1
    },
  }
}
