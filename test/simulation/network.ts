/**
 * A network under virtual time: connections with the promises of replication/environment.ts and no better ones.
 *
 *  - Frames travel as bytes: encoded when the sender's kernel takes them, several in one chunk, chunks cut anywhere.
 *  - A connection that is cut loses what is under way, and its ends learn of it at different times.
 *  - A direction may fall silent: nothing arrives and nobody is told; it may recover, without a gap, or never.
 */

import { Fault } from '../../core/fault.ts'
import type { Dial, Link, LinkHandlers } from '../../replication/environment.ts'
import { FrameReader } from '../../replication/machine/frame-reader.ts'
import { encodeFrame, type Frame } from '../../replication/machine/frame.ts'
import { decodeHello, type Hello } from '../../replication/machine/handshake.ts'
import type { Random } from './random.ts'
import type { Life, Scheduler } from './scheduler.ts'

/** Frames that fit into the buffers of the two kernels. */
const WINDOW = 24

export interface Listener {
  readonly life: Life
  take(link: Link, hello: Hello): LinkHandlers
}

export interface NetworkOptions {
  readonly scheduler: Scheduler
  readonly random: Random
  /** Milliseconds that a chunk travels at most. */
  readonly slowestMs: number
  /** Told of each frame at the moment it is sent. */
  readonly sent: (from: Life, frame: Readonly<Frame>) => void
}

interface Outgoing {
  readonly frame: Frame
  readonly handed: (() => void) | undefined
}

/** One direction of a connection. */
class Pipe {
  silent = false
  /** Nothing will ever arrive any more. */
  dead = false
  /** Where the bytes arrive. */
  to: Endpoint | undefined
  readonly #network: NetworkOptions
  readonly #life: Life
  #outbox: Outgoing[] = []
  #underWay: { readonly bytes: Buffer | undefined; readonly atMs: number }[] = []
  #lastMs = 0
  #transmitting = false

  constructor(network: NetworkOptions, life: Life) {
    this.#network = network
    this.#life = life
  }

  send(frame: Frame, handed: (() => void) | undefined): void {
    this.#network.sent(this.#life, frame)
    this.#outbox.push({ frame: { ...frame }, handed })
    this.#transmitSoon()
  }

  /** All that was sent so far leaves, and the end of the connection after it. */
  finish(): void {
    while (this.#outbox.length > 0) this.#transmitOne()
    this.#depart(undefined)
  }

  /** The process is gone: what its kernel has not got yet was never sent. */
  abandon(): void {
    this.#outbox = []
    this.#depart(undefined)
  }

  /** Hands over what has arrived, in one chunk. */
  pump(): void {
    const receiver = this.to
    if (this.silent || this.dead || receiver === undefined || receiver.paused) return
    const chunks: Buffer[] = []
    let ended = false
    for (let first = this.#underWay[0]; first !== undefined; first = this.#underWay[0]) {
      if (first.atMs > this.#network.scheduler.nowMs) break
      this.#underWay.shift()
      if (first.bytes === undefined) ended = true
      else chunks.push(first.bytes)
    }
    if (this.#outbox.length > 0) this.#transmitSoon()
    const [first] = chunks
    if (first !== undefined) receiver.receive(chunks.length === 1 ? first : Buffer.concat(chunks))
    if (ended) receiver.close('the peer closed the connection')
  }

  pumpSoon(): void {
    const { scheduler, random } = this.#network
    const life = this.to?.life ?? this.#life
    scheduler.after(random.delay(0, 0.2), life, 'resumed', () => this.pump())
  }

  #transmitSoon(): void {
    if (this.#transmitting) return
    this.#transmitting = true
    const { scheduler, random } = this.#network
    scheduler.after(random.delay(0, 0.5), this.#life, 'transmit', () => {
      this.#transmitting = false
      while (this.#outbox.length > 0 && this.#underWay.length < WINDOW) this.#transmitOne()
    })
  }

  #transmitOne(): void {
    const outgoing = this.#outbox.shift()
    if (outgoing === undefined) return
    this.#depart(encodeFrame(outgoing.frame))
    outgoing.handed?.()
  }

  #depart(bytes: Buffer | undefined): void {
    const { scheduler, random, slowestMs } = this.#network
    // In steps of a millisecond, so that some arrive together.
    const travelMs = random.chance(0.5) ? 0 : Math.round(random.delay(0, slowestMs))
    this.#lastMs = Math.max(this.#lastMs, scheduler.nowMs + travelMs)
    this.#underWay.push({ bytes, atMs: this.#lastMs })
    const life = this.to?.life ?? this.#life
    scheduler.after(this.#lastMs - scheduler.nowMs, life, 'arrive', () => this.pump())
  }
}

/** One end of a connection. */
class Endpoint implements Link {
  readonly peer: string
  readonly life: Life
  closed = false
  paused = false
  handlers: LinkHandlers
  readonly #incoming: Pipe
  readonly #outgoing: Pipe
  readonly #reader = new FrameReader()
  readonly #random: Random

  constructor(
    peer: string,
    life: Life,
    pipes: { incoming: Pipe; outgoing: Pipe },
    random: Random,
    handlers: LinkHandlers,
  ) {
    this.peer = peer
    this.life = life
    this.handlers = handlers
    this.#incoming = pipes.incoming
    this.#outgoing = pipes.outgoing
    this.#random = random
    pipes.incoming.to = this
  }

  send(frame: Frame): void {
    if (!this.closed) this.#outgoing.send(frame, undefined)
  }

  sendData(frame: Frame, handed: () => void): void {
    if (this.closed) handed()
    else this.#outgoing.send(frame, handed)
  }

  pause(): void {
    this.paused = true
  }

  resume(): void {
    this.paused = false
    this.#incoming.pumpSoon()
  }

  close(reason: string): void {
    if (this.closed) return
    this.closed = true
    this.paused = false
    this.#outgoing.finish()
    this.handlers.closed(reason)
  }

  /** The process that had this end is gone. */
  abandon(): void {
    this.closed = true
    this.paused = false
    this.#outgoing.abandon()
  }

  receive(chunk: Buffer): void {
    const cut = this.#random.whole(0, chunk.length)
    this.#push(chunk.subarray(0, cut))
    this.#push(chunk.subarray(cut))
    // Payloads were valid during the calls only.
    chunk.fill(0xdd)
  }

  #push(chunk: Buffer): void {
    if (this.closed) return
    try {
      this.#reader.push(chunk, (frame) => {
        this.handlers.frame(frame)
        return !this.closed
      })
    } catch (error) {
      if (!(error instanceof Fault)) throw error
      this.close(error.message)
    }
  }
}

interface Wire {
  readonly ends: readonly [Endpoint, Endpoint]
  readonly pipes: readonly [Pipe, Pipe]
}

export class Network {
  /** While true no connection can be made. */
  partitioned = false
  readonly #listeners = new Map<string, Listener>()
  readonly #options: NetworkOptions
  #wires: Wire[] = []

  constructor(options: NetworkOptions) {
    this.#options = options
  }

  listen(host: string, listener: Listener): void {
    this.#listeners.set(host, listener)
  }

  dial(life: Life, host: string): Dial {
    const { scheduler, random } = this.#options
    return (connected, failed) =>
      scheduler.after(random.delay(0.1, 30), life, 'dial', () => {
        const listener = this.#listeners.get(host)
        if (this.partitioned || listener?.life.alive !== true) failed('no route to host')
        else connected((handlers) => this.#connect(life, listener, handlers))
      })
  }

  /** Every connection breaks. */
  cut(): void {
    const { scheduler, random } = this.#options
    for (const { ends, pipes } of this.#open()) {
      for (const pipe of pipes) pipe.dead = true
      for (const end of ends)
        scheduler.after(random.delay(0, 100), end.life, 'reset', () =>
          end.close('connection reset'),
        )
    }
  }

  /** Nothing arrives any more, in one direction or both, and nobody is told. */
  silence(): void {
    const directions = this.#options.random.pick([[0], [1], [0, 1]] as const)
    for (const { pipes } of this.#open()) for (const index of directions) pipes[index].silent = true
  }

  /** Silence ends: what was held up arrives, or the connection is of no use any more and nobody is told. */
  speak(): void {
    for (const { pipes } of this.#open()) {
      const lost = this.#options.random.chance(0.5)
      for (const pipe of pipes) {
        if (!pipe.silent) continue
        pipe.silent = false
        pipe.dead ||= lost
        if (!pipe.dead) pipe.pumpSoon()
      }
    }
  }

  /** Whether a process does not read a connection at present. */
  isUnread(life: Life): boolean {
    return this.#open().some(({ ends }) => ends.some((end) => end.life === life && end.paused))
  }

  /** A process is gone. `told`: its kernel lives and ends its connections. */
  crash(life: Life, told: boolean): void {
    for (const { ends, pipes } of this.#open()) {
      if (!ends.some((end) => end.life === life)) continue
      if (!told) for (const pipe of pipes) pipe.dead = true
      for (const end of ends) if (end.life === life) end.abandon()
    }
  }

  #open(): Wire[] {
    this.#wires = this.#wires.filter(({ ends }) => ends.some(({ closed }) => !closed))
    return this.#wires
  }

  #connect(life: Life, listener: Listener, handlers: LinkHandlers): Link {
    const { random } = this.#options
    const there = new Pipe(this.#options, life)
    const back = new Pipe(this.#options, listener.life)
    const near = new Endpoint(
      listener.life.name,
      life,
      { incoming: back, outgoing: there },
      random,
      handlers,
    )
    let owner: LinkHandlers | undefined
    const far: Endpoint = new Endpoint(
      life.name,
      listener.life,
      { incoming: there, outgoing: back },
      random,
      {
        frame: (arrived) => {
          if (owner !== undefined) return owner.frame(arrived)
          if (arrived.type !== 'hello')
            throw new Fault('PROTOCOL', `the first frame is ${arrived.type}, not hello`)
          owner = listener.take(far, decodeHello(arrived.payload))
        },
        closed: (reason) => owner?.closed(reason),
      },
    )
    this.#wires.push({ ends: [near, far], pipes: [there, back] })
    return near
  }
}
