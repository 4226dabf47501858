/**
 * What a server has acknowledged and may still lose in a crash, because no flush has covered it: kept to be sent once
 * more after a lost connection. Pure.
 *
 * Invariants:
 *  - Changes are kept in the order in which they were acknowledged, until a flush covers them that was issued later.
 *  - Memory is what `bytes` says, give or take a piece.
 */

import { MiB } from '../../core/units.ts'

interface Place {
  readonly at: number
  readonly length: number
  /** It was acknowledged as being on stable storage (FUA): it cannot be lost, and nothing older may come over it. */
  readonly durable: boolean
}

export type Change = Place &
  (
    | { readonly kind: 'write'; readonly bytes: Buffer }
    | { readonly kind: 'zero'; readonly flags: number }
    | { readonly kind: 'trim' }
  )

/** Content is copied side by side into pieces of this size; a larger write has one of its own. */
const PIECE = 1 * MiB
/** What an entry takes besides its content, roughly. */
const OVERHEAD = 256

export class ReplayLog {
  #changes: Change[] = []
  #bytes = 0
  /** Changes that were ever forgotten. */
  #forgotten = 0
  #piece: Buffer = Buffer.alloc(0)
  #used = 0

  get bytes(): number {
    return this.#bytes
  }

  get changes(): readonly Change[] {
    return this.#changes
  }

  /** What a flush that is issued now covers. */
  get mark(): number {
    return this.#forgotten + this.#changes.length
  }

  /** Keeps a change; its content is copied. */
  add(change: Change): void {
    this.#bytes += sizeOf(change)
    this.#changes.push(
      change.kind === 'write' ? { ...change, bytes: this.#copy(change.bytes) } : change,
    )
  }

  /** Forgets what was kept before `mark` was given. */
  forget(mark: number): void {
    const gone = this.#changes.splice(0, Math.max(0, mark - this.#forgotten))
    this.#forgotten += gone.length
    for (const change of gone) this.#bytes -= sizeOf(change)
    if (this.#changes.length === 0) this.#used = 0
  }

  #copy(bytes: Buffer): Buffer {
    if (this.#used + bytes.length > this.#piece.length) {
      this.#piece = Buffer.allocUnsafeSlow(Math.max(PIECE, bytes.length))
      this.#used = 0
    }
    const copy = this.#piece.subarray(this.#used, this.#used + bytes.length)
    bytes.copy(copy)
    this.#used += bytes.length
    return copy
  }
}

/** Bytes that a change takes in the log. */
export function sizeOf(change: Pick<Change, 'kind' | 'length'>): number {
  return OVERHEAD + (change.kind === 'write' ? change.length : 0)
}

/**
 * What has to be sent so that the disk is as if `changes` had been made in their order, whichever of them it has, and in
 * whatever order: the parts that nothing later has changed, without those that are durable. No two of them overlap, so
 * that no older content is ever sent again where newer content may be on stable storage.
 */
export function lastContents(changes: readonly Change[]): Change[] {
  const covered = new Covered()
  const last: Change[] = []
  for (const change of changes.toReversed()) {
    for (const { from, to } of covered.add(change.at, change.at + change.length)) {
      if (!change.durable) last.push(partOf(change, from, to))
    }
  }
  return last
}

function partOf(change: Change, from: number, to: number): Change {
  const place = { at: from, length: to - from }
  if (change.kind !== 'write') return { ...change, ...place }
  return { ...change, ...place, bytes: change.bytes.subarray(from - change.at, to - change.at) }
}

interface Span {
  readonly from: number
  readonly to: number
}

/** A set of bytes as spans in ascending order that do not touch. */
class Covered {
  readonly #spans: Span[] = []

  /** Adds [from, to). @returns what of it was not there */
  add(from: number, to: number): Span[] {
    // The spans from `first` to before `next` touch or overlap the new one, which takes their place.
    const first = this.#firstEndingAtOrAfter(from)
    const fresh: Span[] = []
    let position = from
    let [least, most] = [from, to]
    let next = first
    for (let span = this.#spans[next]; span !== undefined && span.from <= to;) {
      if (span.from > position) fresh.push({ from: position, to: span.from })
      position = Math.max(position, span.to)
      least = Math.min(least, span.from)
      most = Math.max(most, span.to)
      next += 1
      span = this.#spans[next]
    }
    if (position < to) fresh.push({ from: position, to })
    this.#spans.splice(first, next - first, { from: least, to: most })
    return fresh
  }

  #firstEndingAtOrAfter(from: number): number {
    let [low, high] = [0, this.#spans.length]
    while (low < high) {
      const middle = (low + high) >> 1
      if ((this.#spans[middle]?.to ?? 0) < from) low = middle + 1
      else high = middle
    }
    return low
  }
}
