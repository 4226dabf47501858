/**
 * A request whose reply has not come, and what the chunks of its reply have said so far. Pure.
 *
 * Invariants:
 *  - It succeeds only when every byte asked for was given exactly once, and when no chunk was an error.
 *  - It settles once.
 */

import type { Extent, ExtentKind } from '../core/block-device.ts'
import { Fault } from '../core/fault.ts'
import { Coverage } from './coverage.ts'
import {
  NBD_CMD_BLOCK_STATUS,
  NBD_CMD_READ,
  NBD_REPLY_TYPE_BLOCK_STATUS,
  NBD_REPLY_TYPE_NONE,
  NBD_REPLY_TYPE_OFFSET_HOLE,
  NBD_STATE_HOLE,
  NBD_STATE_ZERO,
  faultCodeOf,
  readOffset,
} from './protocol.ts'

/** Error chunks have this bit in their type (section "Structured reply types"). */
const ERROR_CHUNK = 2 ** 15
const LONGEST_MESSAGE = 4096

export interface Asked {
  /** NBD_CMD_… */
  readonly type: number
  readonly at: number
  readonly length: number
  /** Memory for the data of a READ, else empty. */
  readonly into: Buffer
  /** The context whose extents a BLOCK_STATUS wants. */
  readonly contextId: number
}

export class PendingReply {
  readonly asked: Asked
  readonly #resolve: (extents: Extent[]) => void
  readonly #reject: (fault: Fault) => void
  readonly #where: string
  #coverage: Coverage | undefined
  #extents: Extent[] = []
  #fault: Fault | undefined

  constructor(
    asked: Asked,
    where: string,
    resolve: (extents: Extent[]) => void,
    reject: (fault: Fault) => void,
  ) {
    this.asked = asked
    this.#where = where
    this.#resolve = resolve
    this.#reject = reject
  }

  /** Answers a simple reply. */
  simple(error: number): void {
    if (error !== 0) this.#fail(error, '')
    this.#settle()
  }

  fail(fault: Fault): void {
    this.#reject(fault)
  }

  /** Whether a simple reply may say that it worked: data and extents come in chunks where those were negotiated. */
  maySucceedSimply(structured: boolean): boolean {
    const { type } = this.asked
    return type !== NBD_CMD_BLOCK_STATUS && !(structured && type === NBD_CMD_READ)
  }

  /** Where a chunk's data goes; undefined when it is none that was asked for. */
  data(offset: number, length: number): Buffer | undefined {
    if (!this.#covers(offset, length)) return undefined
    const start = offset - this.asked.at
    return this.asked.into.subarray(start, start + length)
  }

  /** A chunk without data. @returns what is wrong with it */
  content(type: number, content: Buffer): string | undefined {
    if (type >= ERROR_CHUNK) return this.#error(content)
    switch (type) {
      case NBD_REPLY_TYPE_NONE:
        return content.length === 0 ? undefined : 'an empty chunk with content'
      case NBD_REPLY_TYPE_OFFSET_HOLE:
        return this.#hole(content)
      case NBD_REPLY_TYPE_BLOCK_STATUS:
        return this.#status(content)
      default:
        return `a chunk of unknown type ${type}`
    }
  }

  /** The last chunk has come. @returns what is wrong with the whole */
  done(): string | undefined {
    const { type, at, length } = this.asked
    if (this.#fault === undefined) {
      if (type === NBD_CMD_READ && !(this.#coverage ?? new Coverage(at, length)).complete)
        return 'a reply that leaves out bytes and reports no error'
      if (type === NBD_CMD_BLOCK_STATUS && this.#extents.length === 0)
        return 'a reply about blocks that says nothing of them'
    }
    this.#settle()
    return undefined
  }

  #settle(): void {
    if (this.#fault === undefined) this.#resolve(this.#extents)
    else this.#reject(this.#fault)
  }

  #covers(at: number, length: number): boolean {
    if (this.asked.type !== NBD_CMD_READ) return false
    this.#coverage ??= new Coverage(this.asked.at, this.asked.length)
    return this.#coverage.add(at, length)
  }

  /** offset u64, length u32. */
  #hole(content: Buffer): string | undefined {
    if (content.length !== 12) return 'a hole of the wrong length'
    const offset = readOffset(content, 0)
    const length = content.readUInt32BE(8)
    if (!this.#covers(offset, length)) return 'a hole that was not asked for'
    const start = offset - this.asked.at
    this.asked.into.fill(0, start, start + length)
    return undefined
  }

  /** context u32, then for each extent length u32 and flags u32. The last one may reach beyond what was asked for. */
  #status(content: Buffer): string | undefined {
    const { type, at, length, contextId } = this.asked
    if (type !== NBD_CMD_BLOCK_STATUS || content.length < 12 || (content.length - 4) % 8 !== 0)
      return 'extents that were not asked for, or of the wrong length'
    if (content.readUInt32BE(0) !== contextId) return 'extents of a context that was not selected'
    if (this.#extents.length > 0) return 'extents of one context twice'
    const end = at + length
    let position = at
    for (let index = 4; index < content.length; index += 8) {
      const size = content.readUInt32BE(index)
      if (size === 0) return 'an empty extent'
      if (position >= end) return 'more extents than were asked for'
      const kind = kindOf(content.readUInt32BE(index + 4))
      const last = this.#extents.at(-1)
      const clipped = Math.min(size, end - position)
      if (last?.kind === kind) {
        this.#extents[this.#extents.length - 1] = { ...last, length: last.length + clipped }
      } else this.#extents.push({ at: position, length: clipped, kind })
      position += size
    }
    return undefined
  }

  /** error u32, length of the message u16, message; what follows (an offset) is of no use here. */
  #error(content: Buffer): string | undefined {
    if (content.length < 6) return 'an error of the wrong length'
    const length = content.readUInt16BE(4)
    if (length > LONGEST_MESSAGE || 6 + length > content.length)
      return 'an error with a message longer than itself'
    const error = content.readUInt32BE(0)
    if (error === 0) return 'an error that is none'
    this.#fail(error, content.toString('utf8', 6, 6 + length))
    return undefined
  }

  /** The first error of a reply is the one that counts. */
  #fail(error: number, message: string): void {
    const said = message === '' ? '' : `: ${message}`
    const what = `${describe(this.asked)} failed on the server (NBD error ${error}${said})`
    this.#fault ??= new Fault(faultCodeOf(error), what, { where: this.#where })
  }
}

/** A hole that does not promise zeroes has to be read to know. */
function kindOf(flags: number): ExtentKind {
  if ((flags & NBD_STATE_ZERO) === 0) return 'data'
  return (flags & NBD_STATE_HOLE) === 0 ? 'zero' : 'hole'
}

const NAMES = ['read', 'write', 'disconnect', 'flush', 'trim', 'cache', 'zero', 'block status']

function describe({ type, at, length }: Asked): string {
  return `${NAMES[type] ?? 'request'} of ${length} bytes at ${at}`
}
