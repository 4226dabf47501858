/**
 * The shell around a primary's machine: connects, moves frames, keeps time, carries out effects. Decides nothing.
 */

import type { BlockDevice } from '../core/block-device.ts'
import { Fault, type FaultCode } from '../core/fault.ts'
import { MiB } from '../core/units.ts'
import {
  every,
  type Dial,
  type GroupEnvironment,
  type Link,
  type LinkHandlers,
} from './environment.ts'
import type { CheckpointResult, GroupStatus, ReplicationGroup } from './group.ts'
import type { Frame } from './machine/frame.ts'
import { decodeHello, decodeRefusal } from './machine/handshake.ts'
import type { PrimaryEffect, PrimaryInput } from './machine/primary-io.ts'
import { PrimaryMachine } from './machine/primary.ts'
import { PrimaryDisk } from './primary-disk.ts'
import { Requests } from './requests.ts'
import { CHECKPOINT_TIMEOUT_MS, type GroupSettings } from './settings.ts'

const RECONNECT_MIN_MS = 50
const RECONNECT_MAX_MS = 2_000
/** Bytes read from the image at a time during a resync. */
const RESYNC_CHUNK = 1 * MiB

export class PrimaryGroup implements ReplicationGroup {
  readonly name: string
  readonly #settings: GroupSettings
  readonly #environment: GroupEnvironment
  readonly #disks: PrimaryDisk[] = []
  readonly #checkpoints = new Requests<CheckpointResult>()
  #machine: PrimaryMachine
  readonly #dial: Dial
  #link: Link | undefined
  #stopTicking: (() => void) | undefined
  /** Ends the attempt to connect, or the wait for the next one; undefined while there is a link. */
  #stopDialling: (() => void) | undefined
  #reconnectMs = RECONNECT_MIN_MS
  #session = 0
  #error: string | null = null
  #complaint = ''
  #closed = false

  constructor(settings: GroupSettings, environment: GroupEnvironment, dial: Dial) {
    this.#dial = dial
    this.name = settings.group
    this.#settings = settings
    this.#environment = environment
    this.#machine = this.#newMachine()
  }

  get machine(): PrimaryMachine {
    return this.#machine
  }

  get link(): Link | undefined {
    return this.#link
  }

  /** Adds a disk; only before start(). */
  attach(name: string, below: BlockDevice): BlockDevice {
    const index = this.#disks.length
    const disk = new PrimaryDisk(name, below, this, () => index)
    this.#disks.push(disk)
    this.#machine = this.#newMachine()
    return disk
  }

  detach(disk: PrimaryDisk): void {
    this.#environment.logger.debug(
      { group: this.name, disk: disk.name },
      'a replicated disk was closed',
    )
    this.close()
  }

  start(): Promise<void> {
    this.#stopTicking = every(this.#environment.timers, this.#settings.heartbeatMs / 2, () =>
      this.#step({ type: 'tick', nowMs: this.#environment.nowMs() }),
    )
    this.#connect()
    return Promise.resolve()
  }

  status(): GroupStatus {
    const machine = this.#machine
    return {
      group: this.name,
      mode: this.#settings.mode,
      role: 'primary',
      protection: machine.protection,
      reason: machine.reason,
      heals: machine.heals,
      checkpoint: machine.committed,
      term: machine.term,
      durable: machine.durable,
      peer: machine.peer,
      disks: this.#disks.map(({ name, geometry }, index) => ({
        name,
        size: geometry.size,
        dirtyBytes: machine.dirtyBytes(index),
      })),
      ramdiskBytes: 0,
      journalBytes: 0,
      error: this.#error,
    }
  }

  checkpoint(timeoutMs = CHECKPOINT_TIMEOUT_MS): Promise<CheckpointResult> {
    return this.#checkpoints.open((request) =>
      this.#step({ type: 'checkpoint', request, timeoutMs, nowMs: this.#environment.nowMs() }),
    )
  }

  promote(): Promise<GroupStatus> {
    const where = `group ${this.name}`
    const remedy = 'run it on the secondary'
    return Promise.reject(
      new Fault('NOT_PERMITTED', 'only a secondary can be promoted; this side is the primary', {
        where,
        remedy,
      }),
    )
  }

  setReplicating(on: boolean): void {
    this.#step({ type: 'set-replicating', on })
    // Also when it was switched off: an attempt that is under way must not succeed any more.
    if (this.#link === undefined) this.#connect()
  }

  diskFailed(reason: string): void {
    this.#report(reason)
    this.#step({ type: 'disk-failed', reason })
  }

  close(): void {
    if (this.#closed) return
    this.#closed = true
    this.#stopTicking?.()
    this.#stopDialling?.()
    this.#link?.close('the primary is shutting down')
  }

  #newMachine(): PrimaryMachine {
    const { group, mode, heartbeatMs, timeoutMs } = this.#settings
    const disks = this.#disks.map(({ name, geometry }) => ({ name, size: geometry.size }))
    return new PrimaryMachine({
      group,
      mode,
      heartbeatMs,
      timeoutMs,
      disks,
      incarnation: this.#environment.incarnation,
    })
  }

  #connect(): void {
    this.#stopDialling?.()
    this.#stopDialling = undefined
    if (this.#closed || !this.#machine.replicating) return
    this.#stopDialling = this.#dial(
      (open) => {
        this.#stopDialling = undefined
        this.#adopt(open)
      },
      (reason) => {
        this.#complain(`cannot reach the secondary: ${reason}`)
        this.#connectLater()
      },
    )
  }

  #connectLater(): void {
    if (this.#closed) return
    this.#stopDialling = this.#environment.timers.after(this.#reconnectMs, () => this.#connect())
    this.#reconnectMs = Math.min(RECONNECT_MAX_MS, this.#reconnectMs * 2)
  }

  #adopt(open: (handlers: LinkHandlers) => Link): void {
    const link: Link = open({
      frame: (frame) => this.#receive(frame),
      closed: (reason) => {
        this.#connectLater()
        if (this.#link !== link) return
        this.#link = undefined
        this.#step({ type: 'link-down', reason })
        this.#complain(reason)
      },
    })
    this.#link = link
    this.#step({ type: 'link-up', nowMs: this.#environment.nowMs(), peer: link.peer })
  }

  #receive(frame: Frame): void {
    const nowMs = this.#environment.nowMs()
    switch (frame.type) {
      case 'hello':
        return this.#step({ type: 'hello', nowMs, hello: decodeHello(frame.payload) })
      case 'refuse':
        return this.#step({ type: 'refused', nowMs, refusal: decodeRefusal(frame.payload) })
      case 'done':
        return this.#step({
          type: 'done',
          nowMs,
          checkpoint: frame.position,
          commitUs: frame.extent,
        })
      case 'heartbeat':
        return this.#step({ type: 'heartbeat', nowMs })
      case 'pressure':
        return this.#step({ type: 'pressure', nowMs, bytes: frame.position, limit: frame.extent })
      case 'write':
      case 'zero':
      case 'checkpoint':
      case 'discard':
      case 'state':
      case 'segment':
        throw new Fault(
          'PROTOCOL',
          `the secondary sent a ${frame.type} frame, which it never sends`,
        )
    }
  }

  #step(input: PrimaryInput): void {
    for (const effect of this.#machine.step(input)) this.#perform(effect)
  }

  #perform(effect: PrimaryEffect): void {
    switch (effect.type) {
      case 'send':
        return this.#link?.send(effect.frame)
      case 'close-link':
        return this.#drop(effect.reason)
      case 'checkpoint-done':
        return this.#checkpoints.resolve(effect.request, effect.result)
      case 'checkpoint-failed':
        return this.#checkpoints.reject(effect.request, this.#fault(effect.code, effect.reason))
      case 'resync':
        this.#session = effect.session
        void this.#resync(effect.session, effect.committed)
        return
      case 'event':
        return this.#announce(effect)
    }
  }

  #announce({ event }: Extract<PrimaryEffect, { type: 'event' }>): void {
    // Not before: a secondary that connects and then refuses would be tried again and again without a pause.
    if (event.event === 'REPLICATION_PROTECTION' && event.data.protection === 'protected') {
      this.#reconnectMs = RECONNECT_MIN_MS
      this.#complaint = ''
    }
    // What was written wrongly was sent again by now, from the image as it is.
    if (event.event === 'REPLICATION_CHECKPOINT') this.#error = null
    if (event.event === 'REPLICATION_ERROR') this.#error = event.data.error
    this.#environment.onEvent(event)
  }

  /** The machine has ended the link: the connection follows. */
  #drop(reason: string): void {
    const link = this.#link
    this.#link = undefined
    link?.close(reason)
    this.#complain(reason)
  }

  async #resync(session: number, committed: number): Promise<void> {
    try {
      const buffer = Buffer.from(new SharedArrayBuffer(RESYNC_CHUNK))
      for (const [index, disk] of this.#disks.entries()) {
        let run = this.#machine.nextDirty(index, 0, RESYNC_CHUNK, committed)
        while (run !== undefined) {
          if (this.#session !== session || this.#link === undefined) return
          await disk.resend(run.at, buffer.subarray(0, run.length))
          run = this.#machine.nextDirty(index, run.at + run.length, RESYNC_CHUNK, committed)
        }
      }
      this.#step({ type: 'resynced', session, nowMs: this.#environment.nowMs() })
    } catch (error) {
      this.diskFailed(`resync stopped: ${error instanceof Error ? error.message : String(error)}`)
    }
  }

  #report(error: string): void {
    this.#error = error
    this.#environment.logger.error({ group: this.name, error }, 'replication error')
    this.#environment.onEvent({ event: 'REPLICATION_ERROR', data: { group: this.name, error } })
  }

  /** Says why there is no link, once for each reason, not at each attempt. */
  #complain(reason: string): void {
    if (reason === this.#complaint || this.#closed) return
    this.#complaint = reason
    const { host, port } = this.#settings
    this.#environment.logger.warn(
      { group: this.name, peer: `${host}:${port}`, reason },
      'not connected to the secondary',
    )
  }

  #fault(code: FaultCode, reason: string): Fault {
    return new Fault(code, reason, { where: `group ${this.name}` })
  }
}
