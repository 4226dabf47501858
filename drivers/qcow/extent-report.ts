/** Which parts of a QCOW2 disk are data, zero or nowhere; the backing image is asked for what it has. */

import type { Extent, ExtentKind } from '../../core/block-device.ts'
import { BACKING, ExtentFinder, ZERO, ZERO_KEPT } from '../../formats/qcow/extents.ts'
import { backedBytes, type QcowImage } from './qcow-image.ts'

/** A longer look would keep everybody else waiting. */
const MOST_EXTENTS = 1024
const MOST_TABLES = 64

export class ExtentReport {
  readonly #image: QcowImage
  readonly #finder: ExtentFinder

  constructor(image: QcowImage) {
    this.#image = image
    this.#finder = new ExtentFinder(image.format)
  }

  /** Extents from `at` on; at least one, possibly not up to the end of the range. */
  extents(at: number, length: number): Promise<Extent[]> {
    return this.#walk(at, length, (into, from, bytes) => this.#backing(into, from, bytes))
  }

  /** As extents(), of this image alone: what it does not hold is a hole, what it holds as zero is zero. */
  held(at: number, length: number): Promise<Extent[]> {
    return this.#walk(at, length, undefined)
  }

  async #walk(at: number, length: number, unheld: Unheld | undefined): Promise<Extent[]> {
    const { mapping, format } = this.#image
    const { l2Span } = format.layout
    const end = at + length
    const extents: Extent[] = []
    let tables = 0
    let absent = 0
    for (let position = at; position < end && extents.length < MOST_EXTENTS;) {
      const index = Math.floor(position / l2Span)
      const within = position - index * l2Span
      const limit = Math.min(end - position, l2Span - within)
      if (!mapping.exists(index)) {
        if (++absent > MOST_TABLES * 1024) break
        position += await passUnheld(extents, position, limit, unheld)
        continue
      }
      const table = mapping.cached(index)
      if (table === undefined) {
        if (++tables > MOST_TABLES && extents.length > 0) break
        await mapping.load(index)
        continue
      }
      this.#finder.find(table.bytes, table.bad, within, limit)
      const { kind, length: found } = this.#finder
      if (kind === BACKING) position += await passUnheld(extents, position, found, unheld)
      else {
        const zero = kind === ZERO && unheld !== undefined ? 'hole' : 'zero'
        add(extents, position, found, kind === ZERO || kind === ZERO_KEPT ? zero : 'data')
        position += found
      }
    }
    return extents
  }

  /** Adds what the backing image says of the range's beginning; gives the bytes that it covers. */
  async #backing(extents: Extent[], at: number, length: number): Promise<number> {
    const there = backedBytes(this.#image, at, length)
    const { backing } = this.#image
    if (there === 0 || backing === undefined) {
      add(extents, at, length, 'hole')
      return length
    }
    if (!backing.can.status) {
      add(extents, at, there, 'data')
      return there
    }
    let covered = 0
    for (const extent of await backing.status(at, there)) {
      add(extents, extent.at, extent.length, extent.kind)
      covered += extent.length
    }
    return covered
  }
}

/** Adds what there is where the image holds nothing; gives the bytes that it covers. */
type Unheld = (extents: Extent[], at: number, length: number) => Promise<number>

async function passUnheld(
  extents: Extent[],
  at: number,
  length: number,
  unheld: Unheld | undefined,
): Promise<number> {
  if (unheld !== undefined) return unheld(extents, at, length)
  add(extents, at, length, 'hole')
  return length
}

function add(extents: Extent[], at: number, length: number, kind: ExtentKind): void {
  const last = extents.at(-1)
  if (last?.kind === kind) extents[extents.length - 1] = { ...last, length: at + length - last.at }
  else extents.push({ at, length, kind })
}
