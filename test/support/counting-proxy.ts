/** A TCP relay on loopback that counts what it passes on, and can be unplugged. */

import { once } from 'node:events'
import net from 'node:net'

import type { Scope } from './scope.ts'

export class CountingProxy {
  readonly port: number
  /** Bytes that were passed on to the target. */
  passed = 0
  readonly #target: number
  readonly #sockets = new Set<net.Socket>()
  #plugged = true

  private constructor(port: number, target: number) {
    this.port = port
    this.#target = target
  }

  static async listen(scope: Scope, target: number): Promise<CountingProxy> {
    const server = net.createServer((socket) => proxy.#relay(socket))
    server.listen(0, '127.0.0.1')
    await once(server, 'listening')
    const address = server.address()
    if (address === null || typeof address === 'string') throw new Error('a TCP server has a port')
    const proxy = new CountingProxy(address.port, target)
    scope.teardown(() => {
      proxy.unplug()
      server.close()
    })
    return proxy
  }

  /** Every connection breaks, and none can be made. */
  unplug(): void {
    this.#plugged = false
    for (const socket of this.#sockets) socket.destroy()
  }

  plug(): void {
    this.#plugged = true
  }

  #relay(near: net.Socket): void {
    if (!this.#plugged) return void near.destroy()
    const far = net.connect({ port: this.#target, host: '127.0.0.1' })
    for (const [one, other] of [
      [near, far],
      [far, near],
    ] as const) {
      this.#sockets.add(one)
      one.on('error', () => other.destroy())
      one.on('close', () => {
        this.#sockets.delete(one)
        other.destroy()
      })
      one.pipe(other)
    }
    near.on('data', (chunk: Buffer) => (this.passed += chunk.length))
  }
}
