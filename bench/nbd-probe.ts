/**
 * The least NBD client that can ask whether a disk is served: it connects, and reads one block when told to. Apart
 * from colotap's own client, and without the start of another process, so that milliseconds can be timed with it.
 * Wire format: the NBD protocol's "Fixed newstyle negotiation" with NBD_OPT_EXPORT_NAME, and simple replies.
 */

import net from 'node:net'
import type { Scope } from '../test/support/scope.ts'

const BLOCK = 4096
/** Flags from the client: fixed newstyle and no zeroes after the export's size. */
const CLIENT_FLAGS = 0x3
const OPTION_MAGIC = 'IHAVEOPT'
const NBD_OPT_EXPORT_NAME = 1
const NBD_REQUEST_MAGIC = 0x25609513
const NBD_SIMPLE_REPLY_MAGIC = 0x67446698
const NBD_CMD_READ = 0

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
    const option = Buffer.alloc(4 + 8 + 4 + 4 + Buffer.byteLength(name))
    option.writeUInt32BE(CLIENT_FLAGS, 0)
    option.write(OPTION_MAGIC, 4)
    option.writeUInt32BE(NBD_OPT_EXPORT_NAME, 12)
    option.writeUInt32BE(Buffer.byteLength(name), 16)
    option.write(name, 20)
    socket.write(option)
    await probe.#take(10) // size and transmission flags
    return probe
  }

  /** Reads the first block. @throws Error when the server refuses it. */
  async read(): Promise<Buffer> {
    const request = Buffer.alloc(28)
    request.writeUInt32BE(NBD_REQUEST_MAGIC, 0)
    request.writeUInt16BE(NBD_CMD_READ, 6)
    request.writeUInt32BE(BLOCK, 24)
    this.#socket.write(request)
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
