/**
 * Cuts a byte stream into JSON texts. A text ends where its outermost object or array closes, or at a line feed: some
 * clients send no line feeds, and a broken text must not swallow what follows it. So a text must be on one line.
 *
 * Invariants:
 *  - At most `maxLength` bytes are held, whatever is sent and however it is cut into chunks.
 *  - How the stream is cut into chunks changes nothing but when a text is found.
 *  - Text that was refused is reported once; framing resumes after the next line feed.
 */

export type Framed =
  | { readonly kind: 'text'; readonly text: string }
  | { readonly kind: 'refused'; readonly reason: string }

const LF = 0x0a
const QUOTE = 0x22
const BACKSLASH = 0x5c
const OPEN = new Set([0x5b, 0x7b])
const CLOSE = new Set([0x5d, 0x7d])
const BLANK = new Set([0x20, 0x09, 0x0d])

/** Deeper than any request, and shallow enough for every recursive reader. */
const MAX_DEPTH = 64

export class JsonFramer {
  readonly #maxLength: number
  /** The first `#length` bytes of it are the text so far. */
  #held = Buffer.alloc(0)
  #length = 0
  #depth = 0
  #inString = false
  #escaped = false
  /** Whether a byte other than a blank was seen since the last text, and whether it opened an object or array. */
  #started = false
  #structured = false
  /** Skipping the rest of a refused line. */
  #skipping = false

  constructor(maxLength: number) {
    this.#maxLength = maxLength
  }

  /** The texts that `chunk` completes. Read all of them before the next push. */
  *push(chunk: Buffer): Generator<Framed, void, undefined> {
    let from = 0
    for (let at = 0; at < chunk.length; at += 1) {
      const byte = chunk[at] ?? 0
      if (this.#skipping) {
        if (byte === LF) this.#skipping = false
        from = at + 1
        continue
      }
      const end = this.#closes(byte) || byte === LF
      const refusal = this.#objection(at + 1 - from)
      if (refusal !== undefined) {
        this.#reset()
        this.#skipping = byte !== LF
        from = at + 1
        yield { kind: 'refused', reason: refusal }
      } else if (!this.#started) {
        // Blanks between texts are no part of a request, however many.
        from = at + 1
      } else if (end) {
        const framed = this.#take(chunk.subarray(from, at + 1))
        from = at + 1
        if (framed !== undefined) yield framed
      }
    }
    this.#hold(chunk.subarray(from))
  }

  /** What is left at the end of the stream. */
  *finish(): Generator<Framed, void, undefined> {
    const framed = this.#take(Buffer.alloc(0))
    if (framed !== undefined) yield framed
  }

  /** Follows the structure of the text. @returns whether `byte` closes its outermost object or array */
  #closes(byte: number): boolean {
    if (this.#inString) {
      if (this.#escaped) this.#escaped = false
      else if (byte === BACKSLASH) this.#escaped = true
      else if (byte === QUOTE) this.#inString = false
      return false
    }
    const first = !this.#started && !BLANK.has(byte)
    if (first) {
      this.#started = true
      this.#structured = OPEN.has(byte)
    }
    if (byte === QUOTE) this.#inString = true
    else if (OPEN.has(byte)) this.#depth += 1
    else if (CLOSE.has(byte) && this.#depth > 0) {
      this.#depth -= 1
      return this.#depth === 0 && this.#structured
    }
    return false
  }

  #objection(more: number): string | undefined {
    if (this.#depth > MAX_DEPTH) return `JSON nested deeper than ${MAX_DEPTH}`
    const tooLong = this.#started && this.#length + more > this.#maxLength
    return tooLong ? `a request longer than ${this.#maxLength} bytes` : undefined
  }

  /** Keeps `part` in one buffer that grows by doubling: a stream of single bytes costs no more than its text. */
  #hold(part: Buffer): void {
    const needed = this.#length + part.length
    if (needed > this.#held.length) {
      const larger = Buffer.alloc(
        Math.min(Math.max(needed, 2 * this.#held.length), this.#maxLength),
      )
      this.#held.copy(larger, 0, 0, this.#length)
      this.#held = larger
    }
    part.copy(this.#held, this.#length)
    this.#length = needed
  }

  /** @returns the held bytes and `last` as one text; undefined when they are blank */
  #take(last: Buffer): Framed | undefined {
    const bytes = Buffer.concat([this.#held.subarray(0, this.#length), last])
    this.#reset()
    let text: string
    try {
      text = new TextDecoder('utf-8', { fatal: true }).decode(bytes).trim()
    } catch {
      return { kind: 'refused', reason: 'a request that is not valid UTF-8' }
    }
    return text === '' ? undefined : { kind: 'text', text }
  }

  #reset(): void {
    this.#held = Buffer.alloc(0)
    this.#length = 0
    this.#depth = 0
    this.#inString = false
    this.#escaped = false
    this.#started = false
    this.#structured = false
  }
}
