/**
 * Brings requests to a server across lost connections: each is sent again until it is answered or its time is over.
 *
 * Invariants:
 *  - A request settles once. It fails with the server's error, or with TIMEOUT at its deadline, connected or not.
 *  - When a request has settled no buffer of it is used: one that is given up while the server has it takes the
 *    connections with it.
 *  - After a loss no request is sent before restore() has put back what the server may have lost. Where that is not
 *    possible no request succeeds any more.
 *  - While stopping, nothing waits for a server that is not connected.
 */

import type { Timers } from '../../core/clock.ts'
import { Fault } from '../../core/fault.ts'
import type { Logger } from '../../core/logger.ts'
import type { NbdClient } from '../../nbd/client.ts'
import type { Session } from './session.ts'

export interface LinkOptions {
  /** For messages. */
  readonly where: string
  readonly deadlineMs: number
  readonly timers: Timers
  readonly nowMs: () => number
  readonly logger: Logger
  /** @throws Fault when the server is not there, or is another one */
  connect(signal: AbortSignal): Promise<Session>
  /** Puts back what the server may have lost. @throws Fault when the server refuses it: then the disk is not what it was */
  restore(session: Session): Promise<void>
}

interface Request {
  readonly perform: (client: NbdClient) => Promise<unknown>
  readonly resolve: (value: unknown) => void
  readonly reject: (fault: Fault) => void
  deadlineMs: number
  /** The session that has it; undefined while it waits for one. */
  session: Session | undefined
}

/** Between attempts to connect: doubled each time, up to the second. */
const FIRST_PAUSE_MS = 50
const LONGEST_PAUSE_MS = 2_000
/** What is under way when the disk is to be closed has so long, in milliseconds. */
const CLOSING_MS = 5_000

export class ServerLink {
  readonly #options: LinkOptions
  readonly #ended = new AbortController()
  /** All that is unanswered, in the order of issue. */
  readonly #open = new Set<Request>()
  #session: Session | undefined
  /** The session that is being made fit for use. */
  #restoring: Session | undefined
  /** Why the disk is of no use any more. */
  #doom: Fault | undefined
  #reason: string | undefined
  #stopping = false
  #alarm: { readonly atMs: number; readonly cancel: () => void } | undefined
  #wakeUp: (() => void) | undefined

  constructor(session: Session, options: LinkOptions) {
    this.#options = options
    this.#use(session)
  }

  get connected(): boolean {
    return this.#session !== undefined
  }

  /**
   * Has `perform` done by a connection; again by another one if that is lost.
   * @param sinceMs when the request came, from which its deadline counts
   */
  submit<T>(perform: (client: NbdClient) => Promise<T>, sinceMs: number): Promise<T> {
    if (this.#doom !== undefined) return Promise.reject(this.#doom)
    if (this.#stopping && this.#session === undefined) return Promise.reject(this.#closingFault())
    const deadlineMs = sinceMs + (this.#stopping ? CLOSING_MS : this.#options.deadlineMs)
    if (deadlineMs <= this.#options.nowMs()) return Promise.reject(this.#lateFault())
    return new Promise<unknown>((resolve, reject) => {
      const request = { perform, resolve, reject, deadlineMs, session: undefined }
      this.#open.add(request)
      this.#watch(deadlineMs)
      if (this.#session !== undefined) this.#send(request, this.#session)
    }) as Promise<T>
  }

  stopWaiting(): void {
    if (this.#stopping) return
    this.#stopping = true
    if (this.#session === undefined) {
      this.#stopReconnecting()
      return
    }
    const latestMs = this.#options.nowMs() + CLOSING_MS
    for (const request of this.#open) request.deadlineMs = Math.min(request.deadlineMs, latestMs)
    if (this.#open.size > 0) this.#watch(latestMs)
  }

  /** Ends the connections; bounded in time. No request is open. */
  async close(): Promise<void> {
    this.#stopping = true
    const session = this.#session
    this.#session = undefined
    this.#stopReconnecting()
    if (session === undefined) return
    const cancel = this.#options.timers.after(CLOSING_MS, () => session.abandon())
    try {
      await session.end()
    } finally {
      cancel()
    }
  }

  #use(session: Session): void {
    this.#session = session
    void session.lost.then((reason) => this.#lose(session, reason))
    for (const request of this.#open) this.#send(request, session)
  }

  #send(request: Request, session: Session): void {
    request.session = session
    request.perform(session.client).then(
      (value) => {
        if (request.session === session && this.#open.delete(request)) request.resolve(value)
      },
      (error: unknown) => {
        if (request.session !== session) return
        const fault = expected(error)
        if (isLoss(fault)) this.#lose(session, fault)
        else if (this.#open.delete(request)) request.reject(fault)
      },
    )
  }

  /** The session is over: its requests wait for the next one. */
  #lose(session: Session, reason: Fault): void {
    session.abandon()
    if (session !== this.#session) return
    this.#session = undefined
    for (const request of this.#open) request.session = undefined
    if (this.#stopping) {
      this.#stopReconnecting()
      return
    }
    const { logger, where } = this.#options
    logger.warn(
      { server: where, reason: reason.message, requests: this.#open.size },
      'NBD server lost',
    )
    this.#reason = undefined
    void this.#reconnect()
  }

  async #reconnect(): Promise<void> {
    const { logger, where } = this.#options
    for (let pauseMs = FIRST_PAUSE_MS; !this.#ended.signal.aborted;) {
      const session = await this.#attempt()
      if (session !== undefined) {
        logger.info({ server: where, requests: this.#open.size }, 'NBD server is back')
        this.#use(session)
        return
      }
      await this.#pause(pauseMs)
      pauseMs = Math.min(2 * pauseMs, LONGEST_PAUSE_MS)
    }
  }

  /** A session that can be used; undefined when there is none now. */
  async #attempt(): Promise<Session | undefined> {
    const { signal } = this.#ended
    let session: Session | undefined
    try {
      session = await this.#options.connect(signal)
      await this.#restore(session)
      if (!signal.aborted) return session
    } catch (error) {
      this.#explain(expected(error))
    }
    session?.abandon()
    return undefined
  }

  async #restore(session: Session): Promise<void> {
    if (this.#ended.signal.aborted) return
    this.#restoring = session
    try {
      await this.#options.restore(session)
    } catch (error) {
      const fault = expected(error)
      if (!isLoss(fault)) this.#condemn(fault)
      throw fault
    } finally {
      this.#restoring = undefined
    }
  }

  /** Says why there is no connection, once for each reason. */
  #explain({ message: reason }: Fault): void {
    if (reason === this.#reason || this.#ended.signal.aborted) return
    this.#reason = reason
    this.#options.logger.warn({ server: this.#options.where, reason }, 'NBD server not back yet')
  }

  #condemn(fault: Fault): void {
    const { where, logger } = this.#options
    const what = 'writes that were acknowledged cannot be put back after the NBD server was lost'
    const remedy = 'stop the guest, check the disk, and attach again'
    this.#doom = new Fault('IO', `${what}: ${fault.what}`, { where, remedy, cause: fault })
    logger.error({ server: where, reason: fault.message }, what)
    this.#ended.abort()
    this.#rejectAll(this.#doom)
  }

  #stopReconnecting(): void {
    this.#ended.abort()
    this.#wakeUp?.()
    this.#restoring?.abandon()
    this.#rejectAll(this.#closingFault())
    this.#alarm?.cancel()
    this.#alarm = undefined
  }

  #pause(ms: number): Promise<void> {
    return new Promise((resolve) => {
      const cancel = this.#options.timers.after(ms, resolve)
      this.#wakeUp = () => {
        cancel()
        resolve()
      }
    })
  }

  /** Has expire() called at `deadlineMs` or before. */
  #watch(deadlineMs: number): void {
    if (this.#alarm !== undefined) {
      if (this.#alarm.atMs <= deadlineMs) return
      this.#alarm.cancel()
    }
    const waitMs = Math.max(1, Math.ceil(deadlineMs - this.#options.nowMs()))
    const cancel = this.#options.timers.after(waitMs, this.#expire)
    this.#alarm = { atMs: deadlineMs, cancel }
  }

  readonly #expire = (): void => {
    this.#alarm = undefined
    const nowMs = this.#options.nowMs()
    const late: Request[] = []
    let nextMs = Infinity
    for (const request of this.#open) {
      if (request.deadlineMs <= nowMs) late.push(request)
      else nextMs = Math.min(nextMs, request.deadlineMs)
    }
    if (nextMs < Infinity) this.#watch(nextMs)
    if (late.length === 0) return
    const fault = this.#lateFault()
    for (const request of late) this.#open.delete(request)
    // First the connections, which may still be using the buffers of the request, then its answer.
    const unanswered = late.some(({ session }) => session !== undefined)
    if (unanswered && this.#session !== undefined) this.#lose(this.#session, fault)
    for (const request of late) request.reject(fault)
  }

  #rejectAll(fault: Fault): void {
    const open = [...this.#open]
    this.#open.clear()
    for (const request of open) request.reject(fault)
  }

  #lateFault(): Fault {
    const { where, deadlineMs } = this.#options
    const limit = this.#stopping ? 'before the disk was closed' : `within ${deadlineMs} ms`
    return new Fault('TIMEOUT', `no answer from the NBD server ${limit}`, {
      where,
      remedy: 'see why the server does not answer, or give it longer with deadline=',
    })
  }

  #closingFault(): Fault {
    return new Fault('SHUTDOWN', 'the disk is being closed, and its NBD server is not connected', {
      where: this.#options.where,
    })
  }
}

/** Whether a request failed for want of a server: it was not done, or nobody knows. */
function isLoss(fault: Fault): boolean {
  return fault.code === 'LINK_LOST' || fault.code === 'SHUTDOWN'
}

/** What a server or the network does is a Fault; anything else is a bug, which must not pass for one. */
function expected(error: unknown): Fault {
  if (error instanceof Fault) return error
  throw error
}
