/** Percentiles of any number of durations in a fixed amount of memory, to within a few percent. */

/** Buckets in a factor of two: each is at most 4.4 % wider than the one before. */
const PER_OCTAVE = 16
const OCTAVES = 40

export class Histogram {
  readonly #counts = new Float64Array(PER_OCTAVE * OCTAVES)
  #count = 0
  #most = 0

  get count(): number {
    return this.#count
  }

  /** The largest value, exactly; 0 when there is none. */
  get most(): number {
    return this.#most
  }

  /** @param value not negative; less than 1 counts as 1 */
  add(value: number): void {
    const bucket = Math.floor(Math.log2(Math.max(1, value)) * PER_OCTAVE)
    const index = Math.min(bucket, this.#counts.length - 1)
    this.#counts[index] = (this.#counts[index] ?? 0) + 1
    this.#count += 1
    this.#most = Math.max(this.#most, value)
  }

  /** A value that the share `share` of all values do not exceed; undefined when there are none. */
  percentile(share: number): number | undefined {
    if (this.#count === 0) return undefined
    const wanted = Math.max(1, Math.ceil(share * this.#count))
    let seen = 0
    for (const [index, count] of this.#counts.entries()) {
      seen += count
      if (seen >= wanted) return Math.min(this.#most, Math.ceil(2 ** ((index + 1) / PER_OCTAVE)))
    }
    return this.#most
  }
}
