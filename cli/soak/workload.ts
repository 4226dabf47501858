/**
 * The guest of one disk: keeps requests of every kind in flight, and knows for each block what was written to it.
 *
 * Invariants:
 *  - Requests in flight do not overlap, so each block has a history without branches (block-history.ts).
 *  - What was acknowledged is read back, whatever happens to the pair meanwhile (invariant 11 of the replication model).
 */

import { FUA } from '../../core/block-device.ts'
import { below, type Random } from '../../core/seeded-random.ts'
import type { NbdClient } from '../../nbd/client.ts'
import type { BlockHistory } from './block-history.ts'

/** Requests are up to so many blocks and bytes long. */
const MAX_BLOCKS = 8
const MAX_BYTES = 256 * 1024

export interface WorkloadOptions {
  readonly client: NbdClient
  readonly history: BlockHistory
  readonly random: Random
  /** Requests in flight. */
  readonly lanes: number
  /** The blocks from here on are never touched. */
  readonly blocks: number
  /** Is told of each write that was acknowledged, with the count of them. */
  readonly onWrite?: (writes: number) => void
  /** Is told when a read did not give what was acknowledged. */
  readonly onViolation: (violation: string) => void
}

/** Blocks that belong to one request. */
interface Run {
  readonly first: number
  readonly count: number
}

export class Workload {
  readonly history: BlockHistory
  writes = 0
  reads = 0
  bytesWritten = 0
  /** Why it ended, when it was not told to. */
  failure: unknown
  readonly #options: WorkloadOptions
  readonly #busy: Uint8Array
  #stopped = false
  #gate: Promise<void> | undefined
  #open: () => void = () => undefined
  #underWay = 0
  readonly #idleWatchers = new Set<() => void>()

  constructor(options: WorkloadOptions) {
    this.#options = options
    this.history = options.history
    this.#busy = new Uint8Array(options.blocks)
  }

  /** Resolves when it was told to stop, or when a request has failed: then the disk is taken to be gone. */
  async run(): Promise<void> {
    await Promise.all(Array.from({ length: this.#options.lanes }, () => this.#lane()))
  }

  /** Lets no new request begin until the function returned is called: a paused guest. */
  hold(): () => void {
    this.#open()
    const gate = new Promise<void>((resolve) => {
      this.#open = () => {
        this.#gate = undefined
        resolve()
      }
    })
    this.#gate = gate
    return () => {
      if (this.#gate === gate) this.#open()
    }
  }

  /** Resolves when nothing is in flight; of use while it is held or stopped. */
  idle(): Promise<void> {
    if (this.#underWay === 0) return Promise.resolve()
    return new Promise((resolve) => this.#idleWatchers.add(resolve))
  }

  /** Begins no more requests; run() ends when those under way have. */
  stop(): void {
    this.#stopped = true
    this.#open()
  }

  /** Cuts its connection. */
  abandon(): void {
    this.#options.client.abandon()
  }

  async #lane(): Promise<void> {
    while (!this.#stopped) {
      if (this.#gate !== undefined) {
        await this.#gate
        continue
      }
      this.#underWay += 1
      try {
        await this.#request(this.#idleRun())
      } catch (error) {
        this.failure ??= error
        return
      } finally {
        this.#underWay -= 1
        if (this.#underWay === 0) this.#tellIdle()
      }
    }
  }

  #tellIdle(): void {
    for (const resolve of this.#idleWatchers) resolve()
    this.#idleWatchers.clear()
  }

  #idleRun(): Run {
    const { random, history, blocks } = this.#options
    const longest = Math.max(1, Math.min(MAX_BLOCKS, Math.floor(MAX_BYTES / history.blockSize)))
    for (;;) {
      const first = below(random, blocks)
      const wanted = random() < 0.7 ? 1 : 1 + below(random, longest)
      let count = 0
      while (count < wanted && first + count < blocks && this.#busy[first + count] === 0) count += 1
      if (count > 0) return { first, count }
    }
  }

  async #request(run: Run): Promise<void> {
    const { random, client } = this.#options
    const kind = random()
    this.#busy.fill(1, run.first, run.first + run.count)
    if (kind < 0.15) await this.#read(run)
    else await this.#write(run, kind)
    // A request that failed keeps its blocks: nobody knows what they hold.
    this.#busy.fill(0, run.first, run.first + run.count)
    if (random() < 0.01) await client.flush()
  }

  async #read({ first, count }: Run): Promise<void> {
    const { client, history, onViolation } = this.#options
    const bytes = Buffer.allocUnsafe(count * history.blockSize)
    await client.read(bytes, first * history.blockSize)
    this.reads += 1
    // Nobody else writes these blocks now, so they have to be exactly as they were acknowledged.
    const violation = history.violation(bytes, history.exactly, first)
    if (violation !== undefined) onViolation(`the guest read back: ${violation}`)
  }

  async #write({ first, count }: Run, kind: number): Promise<void> {
    const { client, history } = this.#options
    const [at, length] = [first * history.blockSize, count * history.blockSize]
    const content = history.issue(first, count, kind < 0.3)
    if (content !== undefined) await client.write(content, at, kind < 0.35 ? FUA : 0)
    else if (kind < 0.22) await client.zero(at, length)
    else await client.trim(at, length)
    history.acknowledge(first, count)
    this.writes += 1
    this.bytesWritten += length
    this.#options.onWrite?.(this.writes)
  }
}
