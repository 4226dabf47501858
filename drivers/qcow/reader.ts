/**
 * Reads of a QCOW2 image.
 *
 * Invariants:
 *  - A read whose tables are in memory is handed to the file below in the same turn, without an allocation where one
 *    extent covers it.
 *  - A failed part fails the read when all other parts have ended: nobody writes into the buffer afterwards.
 */

import { Fault } from '../../core/fault.ts'
import { isPromise, type MaybePromise } from '../../core/maybe-promise.ts'
import { BACKING, BAD, COMPRESSED, DATA, ExtentFinder, SHARED } from '../../formats/qcow/extents.ts'
import { decompressZstd, inflateCluster } from './decompression.ts'
import { allEnded } from './host-file.ts'
import type { L2Table } from './mapping-tables.ts'
import { backedBytes, type QcowImage } from './qcow-image.ts'

export class Reader {
  readonly #image: QcowImage
  readonly #finder: ExtentFinder
  readonly #span: number

  constructor(image: QcowImage) {
    this.#image = image
    this.#finder = new ExtentFinder(image.format)
    this.#span = image.format.layout.l2Span
  }

  /** Fills all of `into` from guest offset `at`; what is beyond the end of the disk reads as zeroes. */
  read(into: Buffer, at: number): MaybePromise<void> {
    return this.#parts(into, at, 0)
  }

  #parts(into: Buffer, at: number, from: number): MaybePromise<void> {
    const { mapping } = this.#image
    let started: Promise<void>[] | undefined
    let done = from
    while (done < into.length) {
      const position = at + done
      const index = Math.floor(position / this.#span)
      const within = position - index * this.#span
      let part: MaybePromise<void>
      let length = Math.min(into.length - done, this.#span - within)
      try {
        if (index * 8 >= mapping.l1.length || !mapping.exists(index)) {
          part = this.#readBacking(into.subarray(done, done + length), position)
        } else {
          const table = mapping.cached(index)
          if (table === undefined) {
            const loaded = mapping.load(index)
            if (!isPromise(loaded)) continue
            const resume = done
            part = loaded.then(() => this.#parts(into, at, resume))
            length = into.length - done
          } else {
            this.#finder.find(table.bytes, table.bad, within, length)
            length = this.#finder.length
            const whole = length === into.length
            part = this.#readExtent(
              whole ? into : into.subarray(done, done + length),
              position,
              table,
            )
          }
        }
      } catch (error) {
        if (started === undefined) throw error
        part = rejected(error)
      }
      done += length
      if (!isPromise(part)) continue
      if (started === undefined) {
        if (done === into.length) return part
        started = []
      }
      started.push(part)
      // Handled when all have ended; until then a rejection must not count as unhandled.
      part.catch(() => undefined)
    }
    return started === undefined ? undefined : allEnded(started)
  }

  /** Reads what the finder found last. */
  #readExtent(into: Buffer, at: number, table: L2Table): MaybePromise<void> {
    const { data, inFlight } = this.#image
    switch (this.#finder.kind) {
      case DATA:
      case SHARED: {
        const reading = data.read(into, this.#finder.host)
        return isPromise(reading) ? inFlight.track(reading) : undefined
      }
      case BACKING:
        return this.#readBacking(into, at)
      case COMPRESSED:
        return this.#readCompressed(into, at, table)
      case BAD:
        throw this.#badEntry(at, table)
      default:
        into.fill(0)
        return undefined
    }
  }

  #readBacking(into: Buffer, at: number): MaybePromise<void> {
    const there = backedBytes(this.#image, at, into.length)
    if (there < into.length) into.fill(0, there)
    const { backing } = this.#image
    if (there === 0 || backing === undefined) return undefined
    return backing.read(there === into.length ? into : into.subarray(0, there), at)
  }

  #readCompressed(into: Buffer, at: number, table: L2Table): Promise<void> {
    const { compression, file, format, inFlight, path } = this.#image
    const { clusterSize } = format.layout
    const within = at % clusterSize
    const place = format.compressedPlace(table.bytes, Math.floor((at % this.#span) / clusterSize))
    const work = async (): Promise<void> => {
      const compressed = Buffer.allocUnsafeSlow(place.length)
      await file.read(compressed, place.at)
      const decompress = compression === 'zstd' ? decompressZstd : inflateCluster
      try {
        const content = await decompress(compressed, clusterSize)
        content.copy(into, 0, within, within + into.length)
      } catch (error) {
        const what = error instanceof Fault ? error.what : 'a compressed cluster cannot be read'
        throw new Fault('IO', what, {
          where: `${path} at byte ${place.at}, for byte ${at} of the disk`,
          remedy: 'restore this part of the disk from a copy',
          cause: error,
        })
      }
    }
    return inFlight.track(work())
  }

  #badEntry(at: number, table: L2Table): Fault {
    const { clusterSize } = this.#image.format.layout
    const reason = table.bad?.get(Math.floor((at % this.#span) / clusterSize)) ?? ''
    return new Fault('IO', `this part of the disk is not to be had: ${reason}`, {
      where: `${this.#image.path}, byte ${at} of the disk`,
      remedy: 'check the image: colotap image check',
    })
  }
}

function rejected(error: unknown): Promise<void> {
  return Promise.resolve().then(() => {
    throw error
  })
}
