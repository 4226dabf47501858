/** Starts an NBD server on a socket of its own for one test, and checks at the end that it gave everything back. */

import assert from 'node:assert/strict'
import { once } from 'node:events'
import { mkdtemp, rm } from 'node:fs/promises'
import net from 'node:net'
import { tmpdir } from 'node:os'
import path from 'node:path'

import type { Test } from 'tap'

import { BufferPool } from '../../core/buffer-pool.ts'
import { SILENT, type Logger } from '../../core/logger.ts'
import { MiB } from '../../core/units.ts'
import type { ClientRule } from '../../nbd/access.ts'
import type { ListenAddress } from '../../nbd/address.ts'
import { NbdClient } from '../../nbd/client.ts'
import { goPayload, optionRequest } from '../../nbd/client-handshake.ts'
import { writeRequest } from '../../nbd/client.ts'
import type { ExportTable, Hold } from '../../nbd/export.ts'
import type { TlsSettings } from '../../nbd/listener-security.ts'
import { NBD_OPT_GO, NBD_REP_ACK, NBD_REP_INFO, REQUEST_HEADER_SIZE } from '../../nbd/protocol.ts'
import { NbdServer, type ServerLimits } from '../../nbd/server.ts'
import type { TransportMode } from '../../net/transport.ts'
import { MemoryDevice } from './memory-device.ts'

export interface Stage {
  readonly server: NbdServer
  readonly pool: BufferPool
  readonly device: MemoryDevice
  readonly address: ListenAddress
  readonly attach: () => Promise<NbdClient>
  readonly raw: () => Promise<RawClient>
  /** A raw client that has attached to the disk, after options of its own. */
  readonly rawAttached: (...options: readonly Buffer[]) => Promise<RawClient>
}

export interface StageOptions {
  readonly device?: MemoryDevice
  readonly poolBytes?: number
  readonly limits?: Partial<ServerLimits>
  readonly transport?: TransportMode
  /** Of the export. */
  readonly hold?: Hold
  readonly tls?: TlsSettings
  /** Who may use the export. */
  readonly clients?: readonly ClientRule[]
  readonly logger?: Logger
}

export function tableOf(...devices: [string, MemoryDevice][]): ExportTable {
  const exports = devices.map(([name, device]) => ({ name, device, description: `the ${name}` }))
  return { find: (name) => exports.find((one) => one.name === name), list: () => exports }
}

/** The disk alone, with what a test wants of it. */
function diskTable(device: MemoryDevice, { hold, clients }: StageOptions): ExportTable {
  const shared = { name: 'disk', description: 'the disk', device }
  const disk = { ...shared, ...(hold && { hold }), ...(clients && { clients }) }
  return { find: (name) => (name === 'disk' ? disk : undefined), list: () => [disk] }
}

export async function temporaryFolder(t: Test): Promise<string> {
  const folder = await mkdtemp(path.join(tmpdir(), 'nbd-'))
  t.teardown(() => rm(folder, { recursive: true, force: true }))
  return folder
}

/** A server with one export, `disk`; closed when the test ends, its pool checked to be empty then. */
export async function stage(t: Test, options: StageOptions = {}): Promise<Stage> {
  const device = options.device ?? new MemoryDevice(4 * MiB)
  const pool = new BufferPool(options.poolBytes ?? 64 * MiB)
  const server = new NbdServer({
    exports: diskTable(device, options),
    pool,
    logger: options.logger ?? SILENT,
    limits: { lingerMs: 200, closeMs: 5000, ...options.limits },
    transport: options.transport ?? 'in-place',
  })
  const folder = await temporaryFolder(t)
  const socketPath = path.join(folder, 'nbd.sock')
  const address: ListenAddress = { kind: 'unix', path: socketPath }
  await server.listen({ ...address, ...(options.tls && { tls: options.tls }) })
  const sockets: net.Socket[] = []
  t.teardown(async () => {
    for (const socket of sockets) socket.destroy()
    device.release()
    await server.close()
    // After a close() that was cut short the device may be answering only now.
    await until(() => server.connections.length === 0)
    // tap takes no assertions of its own here; an error thrown fails the test.
    assert.equal(pool.bytesInUse, 0, 'every slot is back in the pool')
    assert.deepEqual(server.connections, [], 'no connection is left')
    assert.deepEqual(device.violations, [], 'the device saw no request out of contract')
  })
  const raw = async (): Promise<RawClient> => {
    const socket = net.connect({ path: socketPath })
    sockets.push(socket)
    socket.on('error', () => undefined)
    await once(socket, 'connect')
    return new RawClient(socket)
  }
  return {
    server,
    pool,
    device,
    address,
    raw,
    attach: () => NbdClient.connect({ address, exportName: 'disk' }),
    rawAttached: async (...options) => {
      const client = await raw()
      await client.attach('disk', options)
      return client
    },
  }
}

/** Lets the event loop turn until the condition holds; the test's own timeout bounds it. */
export async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await new Promise(setImmediate)
}

/** A socket whose bytes a test reads by count. */
export class RawClient {
  readonly socket: net.Socket
  readonly closed: Promise<unknown>
  #received: Buffer = Buffer.alloc(0)
  #wake: (() => void) | undefined
  #ended = false

  constructor(socket: net.Socket) {
    this.socket = socket
    // Not events.once: a reset is one way to be closed.
    this.closed = new Promise((resolve) => socket.once('close', resolve))
    socket.on('data', this.#onData)
    socket.on('close', () => {
      this.#ended = true
      this.#wake?.()
    })
  }

  /** For somebody else to read from now on. */
  release(): net.Socket {
    assert.equal(this.#received.length, 0, 'nothing was received too early')
    this.socket.pause()
    this.socket.off('data', this.#onData)
    return this.socket
  }

  readonly #onData = (chunk: Buffer): void => {
    this.#received = Buffer.concat([this.#received, chunk])
    this.#wake?.()
  }

  /** Exactly `count` bytes; fails when the connection closes before. */
  async take(count: number): Promise<Buffer> {
    while (this.#received.length < count) {
      if (this.#ended) throw new Error(`closed after ${this.#received.length} of ${count} bytes`)
      await new Promise<void>((resolve) => (this.#wake = resolve))
    }
    const bytes = this.#received.subarray(0, count)
    this.#received = this.#received.subarray(count)
    return bytes
  }

  /** Everything until the server closes. */
  async rest(): Promise<Buffer> {
    await this.closed
    return this.#received
  }

  send(...parts: readonly Buffer[]): void {
    for (const part of parts) this.socket.write(part)
  }

  /** Greeting, flags, the options, which must be granted, GO, and its replies; gives the transmission flags. */
  async attach(name: string, options: readonly Buffer[] = []): Promise<number> {
    await this.take(18)
    this.send(CLIENT_FLAGS)
    return this.attachGreeted(name, options)
  }

  /** The same, where greeting and flags are over. */
  async attachGreeted(name: string, options: readonly Buffer[] = []): Promise<number> {
    this.send(...options, optionRequest(NBD_OPT_GO, goPayload(name, [])))
    let flags = 0
    for (let granted = 0; granted <= options.length;) {
      const { type, data } = await this.optionReply()
      assert.ok(type < 2 ** 31, `granted, not ${data.toString()}`)
      if (type === NBD_REP_ACK) granted += 1
      if (type === NBD_REP_INFO && data.length === 12) flags = data.readUInt16BE(10)
    }
    return flags
  }

  async optionReply(): Promise<{ option: number; type: number; data: Buffer }> {
    const header = await this.take(20)
    const data = await this.take(header.readUInt32BE(16))
    return { option: header.readUInt32BE(8), type: header.readUInt32BE(12), data }
  }

  /** A simple reply's error, for the cookie it names. */
  async reply(dataLength = 0): Promise<{ error: number; cookie: number; data: Buffer }> {
    const header = await this.take(16)
    const error = header.readUInt32BE(4)
    const data = error === 0 ? await this.take(dataLength) : Buffer.alloc(0)
    return { error, cookie: header.readUInt32BE(12), data }
  }
}

/** Fixed newstyle, no zeroes. */
export const CLIENT_FLAGS = Buffer.from([0, 0, 0, 3])

/** A request's header. */
export function request(
  type: number,
  cookie: number,
  at: number,
  length: number,
  flags = 0,
): Buffer {
  const bytes = Buffer.alloc(REQUEST_HEADER_SIZE)
  writeRequest(bytes, 0, type, flags, cookie, at, length)
  return bytes
}
