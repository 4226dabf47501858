/**
 * Takes the pipeline below a MovableDevice away and puts it, or another one, back: pause, resume, and both at once.
 *
 *     serving → pausing → paused → resuming → serving
 *                                           ↘ failed → resuming → …
 *
 * Invariants:
 *  - What was acknowledged before a pause is flushed before the old pipeline is closed, and that is closed before another
 *    one is opened: two pipelines never have the same image.
 *  - A pipeline that cannot be opened, or does not fit, costs nobody anything: the one before takes its place again, and
 *    whoever commanded it gets its fault.
 *  - Requests wait for a bounded time, whatever happens: each step has a limit, and a pause ends by itself. Where not even
 *    the old pipeline can be opened, requests fail, loudly, until a resume succeeds.
 *  - One command is carried out at a time; another one is refused meanwhile.
 *  - stopWaiting() and close() end every wait; nothing is opened after them.
 */

import { AssertionFailure } from '../../core/assert.ts'
import type { BlockDevice } from '../../core/block-device.ts'
import type { Timers } from '../../core/clock.ts'
import { Deadline } from '../../core/deadline.ts'
import { asFault, Fault } from '../../core/fault.ts'
import type { Logger } from '../../core/logger.ts'
import type { ExportEventSink } from './export-event.ts'
import { fitted, objection, sizeObjection } from './fit.ts'
import { MovableDevice } from './movable-device.ts'

/** A pipeline that can be opened. */
export interface Source {
  /** As users write it. */
  readonly pipeline: string
  open(): Promise<BlockDevice>
  /**
   * Looks whether it can be opened, as far as that shows while another pipeline is open, and changes nothing.
   * @returns bytes of its disk; undefined where that does not show. @throws Fault as open() would
   */
  foresee(): Promise<number | undefined>
}

export type MoverState = 'serving' | 'pausing' | 'paused' | 'resuming' | 'failed'

export interface MoverStatus {
  readonly state: MoverState
  /** What is served, or was served last. */
  readonly pipeline: string
  /** Why it failed, while it has. */
  readonly error: string | null
}

export interface MoverOptions {
  readonly exportName: string
  /** The size belongs to a replication group as well. */
  readonly sizeFixed: boolean
  readonly timers: Timers
  readonly nowMs: () => number
  readonly logger: Logger
  readonly onEvent: ExportEventSink
}

export class Mover {
  readonly device: MovableDevice
  readonly #options: MoverOptions
  #source: Source
  #state: MoverState = 'serving'
  #error: string | null = null
  /** The command under way. It never rejects. */
  #work: Promise<void> | undefined
  #heldSinceMs = 0
  #cancelDeadline: (() => void) | undefined
  /** The close of an old pipeline that took too long. */
  #leftover: Promise<void> | undefined
  #stopping = false
  #closing: Promise<void> | undefined

  /** @param first the open device of `source` */
  constructor(source: Source, first: BlockDevice, options: MoverOptions) {
    this.#source = source
    this.#options = options
    this.device = new MovableDevice(first, {
      stopWaiting: () => this.#stopWaiting(),
      close: () => this.#close(),
    })
  }

  get status(): MoverStatus {
    return { state: this.#state, pipeline: this.#source.pipeline, error: this.#error }
  }

  /**
   * Closes the pipeline; requests wait. After `timeoutMs` it is opened again. On a paused one the time begins anew.
   * @throws Fault, and the pipeline goes on as before
   */
  pause(timeoutMs: number): Promise<void> {
    return this.#command(async () => {
      if (this.#state === 'failed') throw this.#out('the export has failed', 'resume it first')
      if (this.#state === 'paused') this.#heldSinceMs = this.#options.nowMs()
      else await this.#shut(timeoutMs)
      this.#endPauseAfter(timeoutMs)
    })
  }

  /**
   * Opens the pipeline again, or `to` in its place; does nothing where it is served. For a failed one it is another try.
   * @param timeoutMs for opening, and once more for going back
   * @returns microseconds for which requests waited
   * @throws Fault of the opening; then the pipeline before is served again, if that can be opened
   */
  resume(to: Source | undefined, timeoutMs: number): Promise<number> {
    return this.#command(async () => {
      if (this.#state === 'serving') {
        if (to === undefined || to.pipeline === this.#source.pipeline) return 0
        throw this.#out('the export is not paused', 'reopen it with the other pipeline')
      }
      this.#cancelDeadline?.()
      if (this.#state === 'failed') this.#heldSinceMs = this.#options.nowMs()
      return this.#reopen(to ?? this.#source, timeoutMs, null)
    })
  }

  /** Pauses, and resumes with `to`; what shows before is looked at before. As resume(). */
  reopen(to: Source, timeoutMs: number): Promise<number> {
    return this.#command(async () => {
      if (this.#state !== 'serving') throw this.#out(`the export is ${this.#state}`, 'resume it')
      await this.#foresee(to, timeoutMs)
      await this.#shut(timeoutMs)
      return this.#reopen(to, timeoutMs, null)
    })
  }

  /** Runs one command, alone. */
  async #command<T>(run: () => Promise<T>): Promise<T> {
    this.#refuseAtTheEnd()
    if (this.#work !== undefined)
      throw new Fault('IN_USE', 'another command on this export is under way', {
        where: this.#options.exportName,
        remedy: 'wait until it has ended',
      })
    const work = run()
    this.#work = work.then(
      () => undefined,
      () => undefined,
    )
    try {
      return await work
    } finally {
      this.#work = undefined
    }
  }

  async #foresee(to: Source, timeoutMs: number): Promise<void> {
    const deadline = new Deadline(this.#options.timers, timeoutMs)
    try {
      const size = await deadline.within(to.foresee(), () => late('looking at the other pipeline'))
      const shown = this.device.geometry.size
      const why =
        size === undefined ? undefined : sizeObjection(shown, size, this.#options.sizeFixed)
      if (why !== undefined) throw misfit(to, why)
    } finally {
      deadline.end()
    }
  }

  /** serving → paused. @throws Fault, serving as before */
  async #shut(timeoutMs: number): Promise<void> {
    const { device } = this
    const deadline = new Deadline(this.#options.timers, timeoutMs)
    this.#heldSinceMs = this.#options.nowMs()
    this.#state = 'pausing'
    device.hold()
    try {
      await deadline.within(device.drained(), () => late('finishing what is under way'))
      await deadline.within(device.secure(), () => late('flushing'))
      this.#refuseAtTheEnd()
    } catch (error) {
      deadline.end()
      this.#state = 'serving'
      device.letGo()
      throw faultOf(error, 'the export cannot be paused')
    }
    const old = device.detach()
    const closing = old === undefined ? Promise.resolve() : closed(old)
    try {
      await deadline.within(closing, () => late('closing the images'))
    } catch (error) {
      this.#leftover = closing.catch(() => undefined)
      const fault = faultOf(error, 'the images cannot be closed')
      await this.#goBack(fault, timeoutMs)
      throw fault
    } finally {
      deadline.end()
    }
    this.#state = 'paused'
    this.#tell({
      event: 'EXPORT_PAUSED',
      data: { export: this.#options.exportName, timeoutMs },
    })
  }

  /** paused or failed → serving. @returns microseconds of the pause */
  async #reopen(to: Source, timeoutMs: number, reason: string | null): Promise<number> {
    try {
      return await this.#open(to, timeoutMs, reason)
    } catch (error) {
      const fault = faultOf(error, 'the pipeline cannot be opened')
      if (to === this.#source) {
        this.#fail(fault)
        throw fault
      }
      const back = await this.#goBack(fault, timeoutMs)
      const then = back ? 'the export goes on with the pipeline before' : 'the export has failed'
      const { code, what, where, remedy } = fault
      throw new Fault(code, `${what}; ${then}`, {
        ...(where === undefined ? {} : { where }),
        ...(remedy === undefined ? {} : { remedy }),
        cause: error,
      })
    }
  }

  /** Serves the old pipeline again. Never rejects. @returns whether it is served */
  async #goBack(why: Fault, timeoutMs: number): Promise<boolean> {
    try {
      await this.#open(this.#source, timeoutMs, why.message)
      return true
    } catch (error) {
      this.#fail(faultOf(error, 'the pipeline cannot be opened'))
      return false
    }
  }

  async #open(source: Source, timeoutMs: number, reason: string | null): Promise<number> {
    const { device } = this
    this.#refuseAtTheEnd()
    const deadline = new Deadline(this.#options.timers, timeoutMs)
    this.#state = 'resuming'
    device.hold()
    try {
      if (this.#leftover !== undefined)
        await deadline.within(this.#leftover, () => late('closing the images'))
      this.#leftover = undefined
      this.#refuseAtTheEnd()
      const below = await this.#opened(source, deadline)
      this.#source = source
      this.#state = 'serving'
      this.#error = null
      device.attach(below)
    } finally {
      deadline.end()
    }
    const { exportName, nowMs } = this.#options
    const pauseUs = Math.round((nowMs() - this.#heldSinceMs) * 1000)
    const { pipeline } = source
    this.#tell({ event: 'EXPORT_RESUMED', data: { export: exportName, pipeline, pauseUs, reason } })
    return pauseUs
  }

  /** @throws Fault, with nothing left open, though perhaps not at once where the time is over */
  async #opened(source: Source, deadline: Deadline): Promise<BlockDevice> {
    const opening = source.open()
    let below: BlockDevice
    try {
      below = await deadline.within(opening, () => late('opening the pipeline'))
    } catch (error) {
      // What is late may come yet.
      void opening.then(closed).catch(() => undefined)
      throw error
    }
    const why = objection(this.device, below, this.#options.sizeFixed)
    if (why === undefined && !this.#stopping) return fitted(this.device, below)
    await closed(below)
    throw why === undefined ? shuttingDown() : misfit(source, why)
  }

  #refuseAtTheEnd(): void {
    if (this.#stopping) throw shuttingDown()
  }

  #fail(fault: Fault): void {
    const { exportName, logger, onEvent } = this.#options
    const { message } = fault
    this.#state = 'failed'
    this.#error = message
    logger.error(
      { export: exportName, fault: message },
      'the export has failed: requests get errors',
    )
    const what = this.#stopping ? fault : unserved(exportName, fault)
    this.device.fail(what)
    onEvent({ event: 'EXPORT_ERROR', data: { export: exportName, error: message } })
  }

  /** The pause ends by itself, `timeoutMs` after requests began to wait. */
  #endPauseAfter(timeoutMs: number): void {
    const { exportName, logger, nowMs, timers } = this.#options
    this.#cancelDeadline?.()
    const leftMs = Math.max(1, timeoutMs - (nowMs() - this.#heldSinceMs))
    this.#cancelDeadline = timers.after(leftMs, () => {
      this.#command(() => this.#reopen(this.#source, timeoutMs, 'the pause lasted too long')).catch(
        (error: unknown) => {
          logger.warn({ export: exportName, error }, 'a pause that lasted too long')
        },
      )
    })
  }

  #stopWaiting(): void {
    this.#stopping = true
    this.#cancelDeadline?.()
    const { device } = this
    if (device.stopBelow()) device.letGo()
    else device.fail(shuttingDown())
  }

  #close(): Promise<void> {
    this.#closing ??= this.#end()
    return this.#closing
  }

  async #end(): Promise<void> {
    this.#stopWaiting()
    await this.#work
    this.#cancelDeadline?.()
    await this.#leftover
    await this.device.detach()?.close()
  }

  #out(what: string, remedy: string): Fault {
    return new Fault('NOT_PERMITTED', what, { where: this.#options.exportName, remedy })
  }

  #tell(event: Parameters<ExportEventSink>[0]): void {
    this.#options.logger.info(event.data, event.event)
    this.#options.onEvent(event)
  }
}

/** Closes a device that nobody uses any more. */
async function closed(device: BlockDevice): Promise<void> {
  device.stopWaiting?.()
  await device.close()
}

/** @throws what is a bug of ours, and no outside fault */
function faultOf(error: unknown, what: string): Fault {
  if (error instanceof AssertionFailure) throw error
  return asFault(error, 'IO', what)
}

function late(doing: string): Fault {
  return new Fault('TIMEOUT', `${doing} took too long`, {
    remedy: 'look for a disk that hangs, or allow more time',
  })
}

function misfit({ pipeline }: Source, why: string): Fault {
  return new Fault('INVALID', `the pipeline does not fit the export: ${why}`, { where: pipeline })
}

function shuttingDown(): Fault {
  return new Fault('SHUTDOWN', 'the server is being shut down')
}

function unserved(exportName: string, cause: Fault): Fault {
  return new Fault('IO', 'the images of this export are not open', { where: exportName, cause })
}
