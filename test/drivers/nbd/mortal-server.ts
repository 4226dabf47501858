/**
 * An NBD server that can die at any moment, with its connections and with everything that was not flushed, and come back.
 * Clients reach it through a relay, which is what is cut.
 */

import { once } from 'node:events'
import { rm } from 'node:fs/promises'
import net from 'node:net'
import { join } from 'node:path'

import type { Test } from 'tap'

import { BufferPool } from '../../../core/buffer-pool.ts'
import type { BlockDevice } from '../../../core/block-device.ts'
import { SILENT } from '../../../core/logger.ts'
import { MiB } from '../../../core/units.ts'
import type { ListenAddress } from '../../../nbd/address.ts'
import { NbdServer } from '../../../nbd/server.ts'
import { temporaryFolder } from '../../nbd/harness.ts'

export class MortalServer {
  /** Where clients connect. */
  readonly address: ListenAddress & { readonly kind: 'unix' }
  /** What the next connection is given. */
  device: BlockDevice
  /** Connections that were ever made. */
  accepted = 0
  readonly #inner: string
  #relay: net.Server | undefined
  readonly #sockets = new Set<net.Socket>()
  #awaited: { count: number; resolve: () => void }[] = []

  static async start(t: Test, device: BlockDevice): Promise<MortalServer> {
    const folder = await temporaryFolder(t)
    const inner = join(folder, 'inner')
    const mortal = new MortalServer(join(folder, 's'), inner, device)
    const entry = (): { name: string; description: string; device: BlockDevice } => ({
      name: 'disk',
      description: '',
      device: mortal.device,
    })
    const server = new NbdServer({
      exports: { find: (name) => (name === 'disk' ? entry() : undefined), list: () => [entry()] },
      pool: new BufferPool(256 * MiB),
      logger: SILENT,
      limits: { closeMs: 100, lingerMs: 50 },
    })
    await server.listen({ kind: 'unix', path: inner })
    await mortal.up()
    t.teardown(async () => {
      await mortal.down()
      await server.close()
    })
    return mortal
  }

  private constructor(path: string, inner: string, device: BlockDevice) {
    this.address = { kind: 'unix', path }
    this.#inner = inner
    this.device = device
  }

  /** Connections that are open now. */
  get connections(): number {
    return this.#sockets.size / 2
  }

  /** Resolves when so many connections were made, counted from the beginning. */
  whenAccepted(count: number): Promise<void> {
    if (this.accepted >= count) return Promise.resolve()
    return new Promise((resolve) => this.#awaited.push({ count, resolve }))
  }

  /** Lets clients connect. */
  async up(): Promise<void> {
    await rm(this.address.path, { force: true })
    this.#relay = net.createServer((socket) => this.#accept(socket))
    this.#relay.listen(this.address.path)
    await once(this.#relay, 'listening')
  }

  /** Cuts every connection, in the middle of whatever it carries; clients can connect anew. */
  cut(): void {
    for (const socket of this.#sockets) socket.destroy()
    this.#sockets.clear()
  }

  /** Cuts every connection, and lets nobody connect. */
  async down(): Promise<void> {
    const relay = this.#relay
    this.#relay = undefined
    this.cut()
    if (relay === undefined) return
    const closed = once(relay, 'close')
    relay.close()
    await closed
  }

  #accept(outer: net.Socket): void {
    const inner = net.connect(this.#inner)
    for (const [one, other] of [
      [outer, inner],
      [inner, outer],
    ] as const) {
      this.#sockets.add(one)
      one.on('error', () => undefined)
      one.on('close', () => {
        this.#sockets.delete(one)
        other.destroy()
      })
      one.pipe(other)
    }
    this.accepted += 1
    this.#awaited = this.#awaited.filter(({ count, resolve }) => {
      if (this.accepted < count) return true
      resolve()
      return false
    })
  }
}
