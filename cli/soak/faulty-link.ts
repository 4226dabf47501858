/**
 * A TCP relay on the loopback address that stands between a primary and its secondary and behaves as badly as networks do.
 *
 * Invariants:
 *  - Bytes arrive in order and unchanged, unless one was ordered to be flipped.
 *  - What a connection holds back is bounded: a side that is not read from is slowed down by TCP.
 *  - close() leaves no socket behind.
 */

import { once } from 'node:events'
import net from 'node:net'
import { setImmediate as turn, setTimeout as delay } from 'node:timers/promises'

import { Fault } from '../../core/fault.ts'
import { below, type Random } from '../../core/seeded-random.ts'

/** Who receives. */
export type Direction = 'to-secondary' | 'to-primary'

/** What happens to the bytes of one direction. */
export type Weather =
  | { readonly kind: 'fair' }
  /** Nothing passes; the connection stands. */
  | { readonly kind: 'silent' }
  /** A few bytes at a time. */
  | { readonly kind: 'dribble' }
  | { readonly kind: 'late'; readonly ms: number }

const FAIR: Weather = { kind: 'fair' }
/** Pieces of a dribble have at most so many bytes. */
const DROP = 200
/** A dribble stops after so many pieces, so that the time it takes does not grow with the size of requests. */
const DROPS = 10_000

export class FaultyLink {
  readonly #target: number
  readonly #random: Random
  readonly #server = net.createServer((socket) => this.#accept(socket))
  readonly #connections = new Set<Connection>()
  readonly #weather = new Map<Direction, Weather>()
  /** Wakes what waits for better weather. */
  #changed: () => void = () => undefined
  #change = new Promise<void>((resolve) => (this.#changed = resolve))
  #isCut = false
  /** Bytes to the secondary before the link breaks. */
  #breaksAfter: number | undefined
  #flips: Direction | undefined
  #dropsLeft = 0

  private constructor(target: number, random: Random) {
    this.#target = target
    this.#random = random
  }

  /** Relays to `target` on the loopback address. */
  static async listen(target: number, random: Random): Promise<FaultyLink> {
    const link = new FaultyLink(target, random)
    link.#server.listen(0, '127.0.0.1')
    await once(link.#server, 'listening')
    return link
  }

  get port(): number {
    const address = this.#server.address()
    if (address === null || typeof address === 'string')
      throw new Fault('IO', 'the relay has no port on the loopback address')
    return address.port
  }

  /** Breaks the link, now or after so many more bytes to the secondary, most likely in the middle of a frame. */
  cut(afterBytes = 0): void {
    if (afterBytes > 0) {
      this.#breaksAfter = afterBytes
      return
    }
    this.#breaksAfter = undefined
    this.#isCut = true
    for (const connection of [...this.#connections]) connection.break()
  }

  setWeather(direction: Direction, weather: Weather): void {
    this.#weather.set(direction, weather)
    this.#dropsLeft = DROPS
    this.#wake()
  }

  /** Flips one bit of what passes next in a direction. */
  flip(direction: Direction): void {
    this.#flips = direction
  }

  /** Everything is as it should be again; connections that stand stay. */
  heal(): void {
    this.#weather.clear()
    this.#isCut = false
    this.#breaksAfter = undefined
    this.#flips = undefined
    this.#wake()
  }

  async close(): Promise<void> {
    const closed = this.#server.listening ? once(this.#server, 'close') : undefined
    this.#server.close()
    this.cut()
    this.#wake()
    await closed
  }

  #wake(): void {
    const wake = this.#changed
    this.#change = new Promise((resolve) => (this.#changed = resolve))
    wake()
  }

  #accept(primary: net.Socket): void {
    if (this.#isCut) {
      primary.resetAndDestroy()
      return
    }
    const secondary = net.connect({ host: '127.0.0.1', port: this.#target, noDelay: true })
    primary.setNoDelay(true)
    const connection = new Connection(primary, secondary, () =>
      this.#connections.delete(connection),
    )
    this.#connections.add(connection)
    void connection.relay(primary, secondary, (bytes) =>
      this.#pass(bytes, 'to-secondary', secondary),
    )
    void connection.relay(secondary, primary, (bytes) => this.#pass(bytes, 'to-primary', primary))
  }

  /** Takes bytes on as the weather allows. */
  async #pass(bytes: Buffer, direction: Direction, to: net.Socket): Promise<void> {
    let rest = this.#flips === direction ? this.#flipped(bytes) : bytes
    while (rest.length > 0 && !to.destroyed) {
      const weather = this.#weather.get(direction) ?? FAIR
      if (weather.kind === 'silent') {
        await this.#change
        continue
      }
      if (weather.kind === 'late')
        await Promise.race([delay(weather.ms, undefined, { ref: false }), this.#change])
      const dribbles = weather.kind === 'dribble' && this.#dropsLeft > 0
      const length = dribbles ? 1 + below(this.#random, DROP) : rest.length
      const piece = rest.subarray(0, this.#untilBreak(direction, Math.min(length, rest.length)))
      rest = rest.subarray(piece.length)
      await sent(to, piece)
      if (this.#breaksAfter === 0) this.cut()
      if (!dribbles) continue
      this.#dropsLeft -= 1
      await turn()
    }
  }

  #untilBreak(direction: Direction, length: number): number {
    if (this.#breaksAfter === undefined || direction === 'to-primary') return length
    const allowed = Math.min(length, this.#breaksAfter)
    this.#breaksAfter -= allowed
    return allowed
  }

  #flipped(bytes: Buffer): Buffer {
    this.#flips = undefined
    const flipped = Buffer.from(bytes)
    const at = below(this.#random, bytes.length)
    flipped.writeUInt8(flipped.readUInt8(at) ^ (1 << below(this.#random, 8)), at)
    return flipped
  }
}

/** The two sockets of a relayed connection, which live and die together. */
class Connection {
  readonly #sockets: readonly net.Socket[]

  constructor(primary: net.Socket, secondary: net.Socket, onEnd: () => void) {
    this.#sockets = [primary, secondary]
    for (const socket of this.#sockets) {
      socket.on('error', () => undefined)
      socket.on('close', () => {
        // The other side hears of the end after what was sent to it, as on a real connection.
        for (const other of this.#sockets) other.end()
        onEnd()
      })
    }
  }

  /** Moves what arrives until the connection ends. */
  async relay(
    from: net.Socket,
    to: net.Socket,
    pass: (bytes: Buffer) => Promise<void>,
  ): Promise<void> {
    try {
      for await (const bytes of from) await pass(bytes as Buffer)
      to.end()
    } catch {
      this.break()
    }
  }

  /** Both ends get a reset, whatever was under way. */
  break(): void {
    for (const socket of this.#sockets) {
      if (socket.connecting) socket.destroy()
      else socket.resetAndDestroy()
    }
  }
}

/** Resolves when the system has taken the bytes, or the socket is gone. */
function sent(to: net.Socket, bytes: Buffer): Promise<void> {
  return new Promise((resolve) => {
    if (to.destroyed) resolve()
    else to.write(bytes, () => resolve())
  })
}
