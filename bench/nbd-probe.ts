/**
 * The least NBD client that can ask whether a disk is served: it connects, and reads one block when told to. Apart
 * from colotap's own client, and without the start of another process, so that milliseconds can be timed with it.
 * It gets simple replies.
 */

import net from 'node:net'
import type { Scope } from '../test/support/scope.ts'
import { entering, readRequest } from './nbd-bytes.ts'

const BLOCK = 4096
const NBD_SIMPLE_REPLY_MAGIC = 0x67446698

export class NbdProbe {
  readonly #socket: net.Socket
  readonly #chunks: AsyncIterator<Buffer>
  #received = Buffer.alloc(0)

  private constructor(socket: net.Socket) {
    this.#socket = socket
    this.#chunks = socket[Symbol.asyncIterator]() as AsyncIterator<Buffer>
  }

  static async connect(scope: Scope, path: string, name: string): Promise<NbdProbe> {
    const socket = net.connect(path)
    scope.teardown(() => socket.destroy())
    const probe = new NbdProbe(socket)
    await probe.#take(18) // both magics and the server's flags
    socket.write(entering(name))
    await probe.#take(10) // size and transmission flags
    return probe
  }

  /** Reads the first block. @throws Error when the server refuses it. */
  async read(): Promise<Buffer> {
    this.#socket.write(readRequest(0, BLOCK))
    const reply = await this.#take(16)
    const error = reply.readUInt32BE(4)
    if (reply.readUInt32BE(0) !== NBD_SIMPLE_REPLY_MAGIC || error !== 0)
      throw new Error(`the read failed: ${reply.toString('hex')}`)
    return this.#take(BLOCK)
  }

  async #take(length: number): Promise<Buffer> {
    while (this.#received.length < length) {
      const next = await this.#chunks.next()
      if (next.done === true) throw new Error('the NBD server closed the connection')
      this.#received = Buffer.concat([this.#received, next.value])
    }
    const taken = this.#received.subarray(0, length)
    this.#received = this.#received.subarray(length)
    return taken
  }
}
