/**
 * Writes of a QCOW2 image.
 *
 * Invariants:
 *  - What is mapped to a cluster of its own is written in place, without a lock and in the same turn where the tables are
 *    in memory. Everything else happens under a lock on the guest clusters that it changes, and looks again under it.
 *  - An entry changes only after the data that it maps was written; what fails before gives its clusters back.
 *  - The parts of a new cluster that the request leaves out get the content that they had: zeroes beyond every end.
 */

import { assert } from '../../core/assert.ts'
import { isPromise, then, ensure, type MaybePromise } from '../../core/maybe-promise.ts'
import { RangeLock } from '../../core/range-lock.ts'
import { KiB } from '../../core/units.ts'
import { BACKING, BAD, DATA, ExtentFinder, ZERO, ZERO_KEPT } from '../../formats/qcow/extents.ts'
import { hostClusters } from '../../formats/qcow/compressed.ts'
import { NOWHERE } from '../../formats/qcow/entry-format.ts'
import { roundDown, roundUp } from '../../formats/qcow/layout.ts'
import { allEnded } from './host-file.ts'
import type { L2Table } from './mapping-tables.ts'
import type { Metadata } from './metadata.ts'
import { backedBytes, breakDown, type QcowImage } from './qcow-image.ts'
import type { Reader } from './reader.ts'

/** A longer request is written without its edges being copied into one piece with it. */
const MOST_COPY = 256 * KiB

/** A place where a request's bytes go, with what has to be written around them. */
interface Placement {
  /** Byte offset in the file that holds guest clusters, of the first byte of the request. */
  readonly host: number
  /** Bytes before and after the request that are to be filled with what is there now. */
  readonly head: number
  readonly tail: number
}

export class Writer {
  /** Guest clusters whose mapping is being changed. */
  readonly changing = new RangeLock()
  readonly #image: QcowImage
  readonly #metadata: Metadata
  readonly #reader: Reader
  readonly #finder: ExtentFinder
  readonly #span: number
  readonly #clusterSize: number

  constructor(image: QcowImage, metadata: Metadata, reader: Reader) {
    this.#image = image
    this.#metadata = metadata
    this.#reader = reader
    this.#finder = new ExtentFinder(image.format)
    this.#span = image.format.layout.l2Span
    this.#clusterSize = image.format.layout.clusterSize
  }

  write(from: Buffer, at: number): MaybePromise<void> {
    return this.#parts(from, at, 0)
  }

  #parts(from: Buffer, at: number, begin: number): MaybePromise<void> {
    let started: MaybePromise<void>[] | undefined
    let done = begin
    while (done < from.length) {
      const position = at + done
      const index = Math.floor(position / this.#span)
      const within = position - index * this.#span
      const limit = Math.min(from.length - done, this.#span - within)
      let part: MaybePromise<void>
      let length = limit
      try {
        const table = this.#image.mapping.owned(index)
        if (table === undefined) {
          const owned = this.#image.mapping.own(index)
          if (!isPromise(owned)) continue
          const resume = done
          part = owned.then(() => this.#parts(from, at, resume))
          length = from.length - done
        } else {
          length = this.#inPlace(table, within, limit)
          const there = length > 0
          if (!there) length = this.#notInPlace(table, within, limit)
          const piece = length === from.length ? from : from.subarray(done, done + length)
          part = there
            ? this.#writeAt(piece, this.#finder.host)
            : this.#writeLocked(piece, position)
        }
      } catch (error) {
        if (started === undefined) throw error
        part = failed(error)
      }
      done += length
      if (!isPromise(part)) continue
      if (started === undefined) {
        if (done === from.length) return part
        started = []
      }
      started.push(part)
      part.catch(() => undefined)
    }
    return started === undefined ? undefined : allEnded(started)
  }

  /** Bytes from `within` on that can be written in place, at the finder's host offset; 0 where none can. */
  #inPlace(table: L2Table, within: number, limit: number): number {
    this.#finder.find(table.bytes, table.bad, within, limit)
    return this.#finder.kind === DATA ? this.#finder.length : 0
  }

  /** Bytes from `within` on that cannot be written in place. */
  #notInPlace(table: L2Table, within: number, limit: number): number {
    let length = 0
    while (length < limit) {
      this.#finder.find(table.bytes, table.bad, within + length, limit - length)
      if (this.#finder.kind === DATA) break
      if (this.#finder.kind === BAD) throw this.#badEntry(table, within + length)
      length += this.#finder.length
    }
    return length
  }

  #writeAt(from: Buffer, host: number): MaybePromise<void> {
    const { data, inFlight } = this.#image
    const writing = then(data.ensure(host + from.length), () => data.write(from, host))
    return isPromise(writing) ? inFlight.track(writing) : undefined
  }

  /** Writes a piece within one table's reach that has to be mapped first. */
  #writeLocked(from: Buffer, at: number): MaybePromise<void> {
    const start = roundDown(at, this.#clusterSize)
    const end = roundUp(at + from.length, this.#clusterSize)
    return then(this.changing.acquire(start, end - start), (ticket) =>
      ensure(
        () => this.#mapAndWrite(from, at, 0),
        () => this.changing.release(ticket),
      ),
    )
  }

  /** Under the lock: piece by piece, each either in place (somebody else mapped it meanwhile) or in new clusters. */
  #mapAndWrite(from: Buffer, at: number, begin: number): MaybePromise<void> {
    let done = begin
    while (done < from.length) {
      const position = at + done
      const index = Math.floor(position / this.#span)
      const within = position - index * this.#span
      const table = this.#image.mapping.owned(index)
      let step: MaybePromise<number>
      if (table === undefined) step = then(this.#image.mapping.own(index), () => 0)
      else {
        const length = this.#inPlace(table, within, from.length - done)
        if (length > 0)
          step = then(
            this.#writeAt(from.subarray(done, done + length), this.#finder.host),
            () => length,
          )
        else step = this.#mapFirst(table, from.subarray(done), position)
      }
      if (isPromise(step)) {
        const sofar = done
        return step.then((length) => this.#mapAndWrite(from, at, sofar + length))
      }
      done += step
    }
    return undefined
  }

  /** Maps and writes the beginning of `from`; gives the bytes done. */
  #mapFirst(table: L2Table, from: Buffer, at: number): MaybePromise<number> {
    const { format } = this.#image
    const first = Math.floor((at % this.#span) / this.#clusterSize)
    if (table.bad?.has(first) === true) throw this.#badEntry(table, at % this.#span)
    format.look(table.bytes, first)
    if (this.#keepsHost()) return this.#fill(table, first, from, at)
    // As many clusters as need a place, up to the end of the request.
    const last = Math.floor(((at % this.#span) + from.length - 1) / this.#clusterSize)
    let clusters = 1
    while (first + clusters <= last) {
      if (table.bad?.has(first + clusters) === true) break
      format.look(table.bytes, first + clusters)
      if (this.#keepsHost()) break
      clusters += 1
    }
    if (format.dataFile) {
      const host = roundDown(at, this.#clusterSize)
      const end = host + clusters * this.#clusterSize
      return then(this.#image.data.ensure(end), () =>
        this.#place(from, at, { at: host, clusters, zeroed: false }),
      )
    }
    const { allocator } = this.#image
    assert(allocator !== undefined, 'an image that is written to can give out clusters')
    return then(allocator.allocate(clusters), (run) => this.#place(from, at, run))
  }

  /** Whether the cluster that was looked at last has a place of its own, to be filled further. */
  #keepsHost(): boolean {
    const { compressed, copied, dataFile, host } = this.#image.format
    return !compressed && host !== NOWHERE && (copied || dataFile)
  }

  /** Writes into parts of a cluster that has its place, but has no data in these parts. */
  #fill(table: L2Table, entry: number, from: Buffer, at: number): MaybePromise<number> {
    const { format } = this.#image
    const { subclusterSize } = format.layout
    const within = at % this.#clusterSize
    const length = Math.min(from.length, this.#clusterSize - within)
    const { allocated, host } = format
    const firstPart = Math.floor(within / subclusterSize)
    const lastPart = Math.floor((within + length - 1) / subclusterSize)
    const head = (allocated & (1 << firstPart)) === 0 ? within % subclusterSize : 0
    const tail =
      (allocated & (1 << lastPart)) === 0
        ? roundUp(within + length, subclusterSize) - (within + length)
        : 0
    const placement: Placement = { host: host + within, head, tail }
    const bits = parts(firstPart, lastPart)
    return then(this.#store(table, from.subarray(0, length), at, placement, false), () =>
      this.#update(Math.floor(at / this.#span), (owned) => {
        format.look(owned.bytes, entry)
        const now = format.allocated | bits
        format.put(owned.bytes, entry, format.host, now, format.zeroes & ~bits)
        this.#image.mapping.soil(owned, entry, entry)
        return length
      }),
    )
  }

  /** Writes into new clusters, then maps them instead of what was mapped before. */
  #place(
    from: Buffer,
    at: number,
    run: { readonly at: number; readonly clusters: number; readonly zeroed: boolean },
  ): MaybePromise<number> {
    const within = at % this.#clusterSize
    const length = Math.min(from.length, run.clusters * this.#clusterSize - within)
    const end = within + length
    const index = Math.floor(at / this.#span)
    const first = Math.floor((at % this.#span) / this.#clusterSize)
    const used = Math.ceil(end / this.#clusterSize)
    let written: MaybePromise<number>
    try {
      written = this.#update(index, (table) => {
        const start = this.#hull(table, first, within, Math.min(end, this.#clusterSize)).from
        const lastBegin = (used - 1) * this.#clusterSize
        const lastFrom = Math.max(within, lastBegin) - lastBegin
        const stop = this.#hull(table, first + used - 1, lastFrom, end - lastBegin).to + lastBegin
        const placement = { host: run.at + within, head: within - start, tail: stop - end }
        const piece = from.subarray(0, length)
        return then(this.#store(table, piece, at, placement, run.zeroed), () =>
          this.#update(index, (owned) => {
            this.#map(owned, first, used, run.at, start, stop)
            return length
          }),
        )
      })
    } catch (error) {
      this.#giveBack(run)
      throw error
    }
    if (!isPromise(written)) return written
    return written.catch((error: unknown) => {
      this.#giveBack(run)
      throw error
    })
  }

  #giveBack(run: { readonly at: number; readonly clusters: number }): void {
    if (!this.#image.format.dataFile) this.#metadata.unused(run.at, run.clusters)
  }

  /** What must be filled of a cluster that gets a new place, when [from, to) of it is written. */
  #hull(
    table: L2Table,
    entry: number,
    from: number,
    to: number,
  ): { readonly from: number; readonly to: number } {
    const { format } = this.#image
    const { subclusterSize } = format.layout
    format.look(table.bytes, entry)
    if (format.compressed) return { from: 0, to: this.#clusterSize }
    let start = roundDown(from, subclusterSize)
    let stop = roundUp(to, subclusterSize)
    if (format.allocated !== 0) {
      const lowest = 31 - Math.clz32(format.allocated & -format.allocated)
      const highest = 31 - Math.clz32(format.allocated)
      start = Math.min(start, lowest * subclusterSize)
      stop = Math.max(stop, (highest + 1) * subclusterSize)
    }
    return { from: start, to: stop }
  }

  /** Enters clusters `first` to `first + count - 1` at their new places; [start, stop) bytes from the first are data. */
  #map(
    table: L2Table,
    first: number,
    count: number,
    host: number,
    start: number,
    stop: number,
  ): void {
    const { format, mapping } = this.#image
    const { subclusterSize, subclusters } = format.layout
    for (let each = 0; each < count; each += 1) {
      const begin = each * this.#clusterSize
      const firstPart = Math.floor(Math.max(start - begin, 0) / subclusterSize)
      const end = Math.min(stop - begin, this.#clusterSize)
      const lastPart = Math.min(Math.ceil(end / subclusterSize), subclusters) - 1
      const bits = parts(firstPart, lastPart)
      this.release(table, first + each)
      format.look(table.bytes, first + each)
      const zeroes = format.compressed ? 0 : format.zeroes & ~bits
      format.put(table.bytes, first + each, host + begin, bits, zeroes)
    }
    mapping.soil(table, first, first + count - 1)
  }

  /** The entry stops referring to its host clusters. */
  release(table: L2Table, entry: number): void {
    const { format } = this.#image
    if (format.dataFile) return
    format.look(table.bytes, entry)
    if (format.compressed) {
      const place = format.compressedPlace(table.bytes, entry)
      const { first, last } = hostClusters(place, this.#clusterSize)
      this.#metadata.unused(first * this.#clusterSize, last - first + 1)
    } else if (format.host !== NOWHERE) this.#metadata.unused(format.host, 1)
  }

  /** Runs `change` with the table `index`, which it may change; the table must not be used after an await. */
  #update<T>(index: number, change: (table: L2Table) => MaybePromise<T>): MaybePromise<T> {
    const table = this.#image.mapping.owned(index)
    if (table !== undefined) return change(table)
    return then(this.#image.mapping.own(index), () => this.#update(index, change))
  }

  /** Writes the request and what is to be filled around it. */
  #store(
    table: L2Table,
    from: Buffer,
    at: number,
    { host, head, tail }: Placement,
    zeroed: boolean,
  ): MaybePromise<void> {
    const { data } = this.#image
    const end = at + from.length
    const headZero = head > 0 && this.readsZero(table, at - head, head)
    const tailZero = tail > 0 && this.readsZero(table, end, tail)
    const before = zeroed && headZero ? 0 : head
    const after = zeroed && tailZero ? 0 : tail
    if (before === 0 && after === 0) return data.write(from, host)
    if (from.length > MOST_COPY) {
      return allEnded([
        this.#copyEdge(at - before, before, headZero, host - before),
        data.write(from, host),
        this.#copyEdge(end, after, tailZero, host + from.length),
      ])
    }
    const all = Buffer.allocUnsafeSlow(before + from.length + after)
    from.copy(all, before)
    const headPart = all.subarray(0, before)
    const tailPart = all.subarray(before + from.length)
    if (headZero) headPart.fill(0)
    if (tailZero) tailPart.fill(0)
    return then(
      headZero || before === 0 ? undefined : this.#reader.read(headPart, at - before),
      () =>
        then(tailZero || after === 0 ? undefined : this.#reader.read(tailPart, end), () =>
          data.write(all, host - before),
        ),
    )
  }

  async #copyEdge(at: number, length: number, zero: boolean, host: number): Promise<void> {
    if (length === 0) return
    const bytes = Buffer.alloc(length)
    if (!zero) await this.#reader.read(bytes, at)
    await this.#image.data.write(bytes, host)
  }

  /** Whether a range within the reach of `table` is known to read as zeroes. */
  readsZero(table: L2Table, at: number, length: number): boolean {
    const within = at % this.#span
    for (let done = 0; done < length; done += this.#finder.length) {
      this.#finder.find(table.bytes, table.bad, within + done, length - done)
      const { kind } = this.#finder
      if (kind === ZERO || kind === ZERO_KEPT) continue
      if (kind !== BACKING || backedBytes(this.#image, at + done, this.#finder.length) > 0)
        return false
    }
    return true
  }

  #badEntry(table: L2Table, within: number): Error {
    const entry = Math.floor(within / this.#clusterSize)
    return breakDown(this.#image, `L2 table ${table.index}: ${table.bad?.get(entry) ?? ''}`)
  }
}

/** The bits of parts `first` to `last`. */
export function parts(first: number, last: number): number {
  const width = last - first + 1
  return (width >= 32 ? 0xffff_ffff : (2 ** width - 1) << first) >>> 0
}

function failed(error: unknown): Promise<void> {
  return Promise.resolve().then(() => {
    throw error
  })
}
