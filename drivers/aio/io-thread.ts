/**
 * The program of an I/O thread: takes requests of one disk from the ring, performs them with blocking calls, reports.
 * It may hang as long as the disk does; nobody but requests of this disk waits for it.
 */

import { parentPort, receiveMessageOnPort, workerData } from 'node:worker_threads'

import { assert } from '../../core/assert.ts'
import { ImageIo, type ImageDescription } from './image-io.ts'
import { LookOut } from './look-out.ts'
import { errno, loadNative } from './native.ts'
import * as ring from './ring.ts'

/** What the main thread gives a thread to start with. */
export interface ThreadStart {
  readonly memory: SharedArrayBuffer
  readonly image: ImageDescription
  /** Request memory is named by address (native calls) rather than by a registered buffer's number. */
  readonly native: boolean
}

/** A shared buffer becomes known under a number, or is forgotten. */
export interface MemoryNotice {
  readonly id: number
  readonly memory: SharedArrayBuffer | undefined
}

const start = workerData as ThreadStart
const native = start.native ? loadNative() : undefined
assert(
  start.native === (native !== undefined),
  'a thread finds the native calls that its parent found',
)
assert(parentPort !== null, 'an I/O thread is a worker')
const port = parentPort

const requests = new ring.Ring(start.memory)
const image = new ImageIo(start.image, native)
const shared = new Map<number, SharedArrayBuffer>()
const EXTENT_LIMIT = 4096
/** Completions of quick requests announced together: fewer wake-ups of the main thread, little delay. */
const BATCH = 8
const lookOut = new LookOut()
const hasMore = (): boolean => requests.hasSubmitted
let found: Float64Array | undefined
let mailRead = -1

do {
  let silent = 0
  let served = 0
  let length = 0
  for (let slot = requests.take(); slot >= 0; slot = requests.take()) {
    if (native === undefined) readMail()
    const operation = requests.operation(slot)
    // What is done is not kept back while something slow runs; quick writes are reported together.
    if (silent >= BATCH || (silent > 0 && !isQuick(operation))) silent = ringDoorbell()
    length = requests.length(slot)
    const result = perform(slot, operation, requests.at(slot), length)
    requests.complete(slot, result, image.stoppedAt)
    silent += 1
    served += 1
  }
  if (silent > 0) ringDoorbell()
  // Where small requests come one by one, what finds this thread awake need not wake it; with more of them there is little
  // sleep to save.
  if (served === 1 && length <= ring.BRIEF && lookOut.tries()) lookOut.sees(hasMore)
} while (requests.sleep())

/** Returns the number of completions that are then unannounced. */
function ringDoorbell(): 0 {
  if (requests.mustRing()) port.postMessage(null)
  return 0
}

/** Whether the page cache usually absorbs the operation. */
function isQuick(operation: number): boolean {
  return operation === ring.WRITE && start.image.directAlignment === 0
}

function perform(slot: number, operation: number, at: number, length: number): number {
  image.stoppedAt = at
  switch (operation) {
    case ring.READ:
      return transfer(slot, false, at, length)
    case ring.WRITE:
      return transfer(slot, true, at, length)
    case ring.SYNC:
      return image.sync()
    case ring.ZERO:
      return image.zero(at, length, requests.flags(slot))
    case ring.TRIM:
      return image.trim(at, length)
    case ring.EXTENTS:
      return extents(slot, at, length)
    case ring.RESIZE:
      return image.resize(at)
    case ring.PROBE_PUNCH:
      return image.probePunch(at)
    case ring.READ_AHEAD:
      return native?.willNeed(start.image.fd, at, length) ?? -errno('EOPNOTSUPP')
    default:
      return -errno('ENOSYS')
  }
}

function transfer(slot: number, write: boolean, at: number, length: number): number {
  const memory = requests.memoryOf(slot)
  if (native !== undefined) return image.transfer(native, write, memory, length, at)
  const buffer = shared.get(memory)
  assert(buffer !== undefined, 'a buffer is registered before a request names it')
  return image.transferBuffer(write, new Uint8Array(buffer, requests.offset(slot), length), at)
}

/** The request's memory takes as many extents as its field `flags` says, as numbers. */
function extents(slot: number, at: number, length: number): number {
  if (native === undefined) return -errno('EOPNOTSUPP')
  found ??= new Float64Array(EXTENT_LIMIT)
  const room = found.subarray(0, Math.min(EXTENT_LIMIT, requests.flags(slot)))
  const count = image.extents(native, room, at, length)
  if (count > 0) {
    const bytes = new Uint8Array(found.buffer)
    native.copy(requests.memoryOf(slot), native.address(bytes), count * found.BYTES_PER_ELEMENT)
  }
  return count
}

function readMail(): void {
  const posted = requests.mail
  if (posted === mailRead) return
  mailRead = posted
  for (;;) {
    const received = receiveMessageOnPort(port) as { message: MemoryNotice } | undefined
    if (received === undefined) return
    const { id, memory } = received.message
    if (memory === undefined) shared.delete(id)
    else shared.set(id, memory)
  }
}
