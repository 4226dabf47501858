/**
 * What a guest may read from its disk: for each sector, every tag that a correct disk could hold now.
 *
 *  - A write that was acknowledged replaces all that ended before it began. One that overlaps it in time may have won.
 *  - A write that failed may have happened or not, until a later one replaces it.
 *  - A read returns what could be there at some instant while it was under way; what it returned stays, unless a
 *    write was under way meanwhile.
 *  - A checkpoint replaces everything but the writes that are under way. What it is too short for may be anything.
 */

import type { Content } from './sectors.ts'

interface Candidate {
  readonly tag: number
  /** When the write of it ended; Infinity while it is under way. */
  ended: number
}

/** A sector that was in no checkpoint of a disk that was smaller: nobody says what it holds. */
const ANYTHING = -3

export interface Span {
  readonly first: number
  readonly count: number
}

export interface WriteTicket extends Span {
  readonly began: number
  readonly candidates: readonly Candidate[]
}

export interface ReadTicket extends Span {
  readonly began: number
  /** The tags that each sector may have had since. */
  readonly allowed: readonly number[][]
}

export class Registers {
  readonly #sectors: Candidate[][] = []
  readonly #reads = new Set<ReadTicket>()
  #clock = 1
  #rebased = 0

  constructor(content: Content) {
    for (const tag of content) this.#sectors.push([{ tag, ended: 0 }])
  }

  get count(): number {
    return this.#sectors.length
  }

  /** The disk has grown. @param known it holds zeroes there; else a checkpoint says what, or nobody */
  grow(sectors: number, known: boolean): void {
    const tag = known ? 0 : ANYTHING
    while (this.count < sectors) this.#sectors.push([{ tag, ended: this.#clock }])
  }

  beginWrite({ first, count }: Span, tag: number): WriteTicket {
    const candidates: Candidate[] = []
    for (let sector = first; sector < first + count; sector += 1) {
      const candidate = { tag, ended: Infinity }
      candidates.push(candidate)
      this.#sectors[sector]!.push(candidate)
      this.#allow(sector, tag)
    }
    return { first, count, began: this.#tick(), candidates }
  }

  /** @param outcome `refused`: it certainly did not happen */
  endWrite(
    { first, began, candidates }: WriteTicket,
    outcome: 'done' | 'failed' | 'refused',
  ): void {
    const now = this.#tick()
    for (let index = 0; index < candidates.length; index += 1) {
      const candidate = candidates[index]!
      candidate.ended = now
      const all = this.#sectors[first + index]!
      if (outcome === 'done' && all.length > 1)
        this.#sectors[first + index] = all.filter(
          (other) => other === candidate || other.ended > began,
        )
      if (outcome === 'refused')
        this.#sectors[first + index] = all.filter((other) => other !== candidate)
    }
  }

  beginRead({ first, count }: Span): ReadTicket {
    const allowed: number[][] = []
    for (let sector = first; sector < first + count; sector += 1)
      allowed.push(this.#sectors[sector]!.map(({ tag }) => tag))
    const ticket = { first, count, began: this.#tick(), allowed }
    this.#reads.add(ticket)
    return ticket
  }

  /** @returns what is wrong with what was read */
  endRead(ticket: ReadTicket, content: Content): string | undefined {
    this.#reads.delete(ticket)
    for (let index = 0; index < ticket.count; index += 1) {
      const sector = ticket.first + index
      const tag = content[index]!
      const allowed = ticket.allowed[index]!
      if (!allowed.includes(tag) && !allowed.includes(ANYTHING))
        return objection(sector, tag, allowed)
      this.#narrow(sector, tag, ticket.began)
    }
    return undefined
  }

  abandonRead(ticket: ReadTicket): void {
    this.#reads.delete(ticket)
  }

  /** Everything but what is under way becomes `content`. */
  rebase(content: Content): void {
    const now = this.#tick()
    this.#rebased = now
    for (let sector = 0; sector < this.count; sector += 1) {
      const tag = content[sector] ?? ANYTHING
      const candidates = [{ tag, ended: now }]
      for (const candidate of this.#sectors[sector]!)
        if (candidate.ended === Infinity) candidates.push(candidate)
      this.#sectors[sector] = candidates
      this.#allow(sector, tag)
    }
  }

  /** @returns what is wrong with `content` as the whole disk, now */
  objectionTo(content: Content): string | undefined {
    for (let sector = 0; sector < this.count; sector += 1) {
      const tag = content[sector]!
      const candidates = this.#sectors[sector]!
      if (candidates[0]?.tag === tag) continue
      if (candidates.some((candidate) => candidate.tag === tag || candidate.tag === ANYTHING))
        continue
      return objection(
        sector,
        tag,
        candidates.map((candidate) => candidate.tag),
      )
    }
    return undefined
  }

  #narrow(sector: number, tag: number, began: number): void {
    if (this.#rebased > began) return
    const candidates = this.#sectors[sector]!
    if (candidates.some((candidate) => candidate.tag === ANYTHING)) return
    if (candidates.length === 1 || candidates.some(({ ended }) => ended > began)) return
    this.#sectors[sector] = candidates.filter((candidate) => candidate.tag === tag)
  }

  /** A read that is under way may find `tag` there. */
  #allow(sector: number, tag: number): void {
    for (const { first, count, allowed } of this.#reads)
      if (sector >= first && sector < first + count) allowed[sector - first]!.push(tag)
  }

  #tick(): number {
    this.#clock += 1
    return this.#clock
  }
}

function objection(sector: number, tag: number, allowed: readonly number[]): string {
  return `sector ${sector} is ${tag}, may be ${[...new Set(allowed)].join(' or ')}`
}
