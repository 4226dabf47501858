/**
 * What a guest may read from its disk: for each sector, every tag that a correct disk could hold now.
 *
 *  - A write that was acknowledged replaces all that ended before it began. One that overlaps it in time may have won.
 *  - A write that failed may have happened or not, until a later one replaces it.
 *  - A read returns what could be there at some instant while it was under way; what it returned stays, unless a
 *    write was under way meanwhile.
 *  - A checkpoint replaces everything but the writes that are under way.
 */

import type { Content } from './sectors.ts'

interface Candidate {
  readonly tag: number
  /** When the write of it ended; Infinity while it is under way. */
  ended: number
}

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
  readonly allowed: readonly Set<number>[]
}

export class Registers {
  #sectors: Candidate[][]
  #reads = new Set<ReadTicket>()
  #clock = 1
  #rebased = 0

  constructor(content: Content) {
    this.#sectors = Array.from(content, (tag) => [{ tag, ended: 0 }])
  }

  get count(): number {
    return this.#sectors.length
  }

  beginWrite(span: Span, tag: number): WriteTicket {
    const candidates = Array.from({ length: span.count }, () => ({ tag, ended: Infinity }))
    for (const [index, candidate] of candidates.entries())
      this.#sectors[span.first + index]!.push(candidate)
    this.#allow(span, () => tag)
    return { ...span, began: this.#tick(), candidates }
  }

  /** @param outcome `refused`: it certainly did not happen */
  endWrite(ticket: WriteTicket, outcome: 'done' | 'failed' | 'refused'): void {
    const now = this.#tick()
    for (const [index, candidate] of ticket.candidates.entries()) {
      const sector = ticket.first + index
      candidate.ended = now
      const all = this.#sectors[sector]!
      if (outcome === 'done')
        this.#sectors[sector] = all.filter(
          (other) => other === candidate || other.ended > ticket.began,
        )
      if (outcome === 'refused') this.#sectors[sector] = all.filter((other) => other !== candidate)
    }
  }

  beginRead(span: Span): ReadTicket {
    const allowed = this.#sectors
      .slice(span.first, span.first + span.count)
      .map((candidates) => new Set(candidates.map(({ tag }) => tag)))
    const ticket = { ...span, began: this.#tick(), allowed }
    this.#reads.add(ticket)
    return ticket
  }

  /** @returns what is wrong with what was read */
  endRead(ticket: ReadTicket, content: Content): string | undefined {
    this.#reads.delete(ticket)
    for (const [index, allowed] of ticket.allowed.entries()) {
      const sector = ticket.first + index
      const tag = content[index]!
      if (!allowed.has(tag)) return this.#objection(sector, tag, [...allowed])
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
    this.#sectors = this.#sectors.map((candidates, sector) => [
      { tag: content[sector]!, ended: now },
      ...candidates.filter(({ ended }) => ended === Infinity),
    ])
    this.#allow({ first: 0, count: this.count }, (sector) => content[sector]!)
  }

  /** @returns what is wrong with `content` as the whole disk, now */
  objectionTo(content: Content): string | undefined {
    for (const [sector, candidates] of this.#sectors.entries()) {
      const tag = content[sector]!
      if (candidates.some((candidate) => candidate.tag === tag)) continue
      return this.#objection(
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
    if (candidates.length === 1 || candidates.some(({ ended }) => ended > began)) return
    this.#sectors[sector] = candidates.filter((candidate) => candidate.tag === tag)
  }

  #allow({ first, count }: Span, tagOf: (sector: number) => number): void {
    for (const read of this.#reads) {
      const from = Math.max(first, read.first)
      const end = Math.min(first + count, read.first + read.count)
      for (let sector = from; sector < end; sector += 1)
        read.allowed[sector - read.first]!.add(tagOf(sector))
    }
  }

  #objection(sector: number, tag: number, allowed: readonly number[]): string {
    return `sector ${sector} is ${tag}, may be ${allowed.join(' or ')}`
  }

  #tick(): number {
    this.#clock += 1
    return this.#clock
  }
}
