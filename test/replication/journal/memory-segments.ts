/** Segments in memory, which a test may look at, cut, damage and make fail. */

import { Fault } from '../../../core/fault.ts'
import type { SegmentFile, SegmentStore } from '../../../replication/journal/segments.ts'

export class MemorySegments implements SegmentStore {
  readonly place = 'memory'
  readonly files = new Map<number, Buffer>()
  /** What was flushed of each. */
  readonly durable = new Map<number, number>()
  /** Names the request that is to fail, if any. */
  failing: 'create' | 'append' | 'sync' | 'remove' | undefined
  /** While there is one, no sync ends before it. */
  gate: Promise<void> | undefined
  /** While there is one, no removal ends before it. */
  removing: Promise<void> | undefined
  /** Bytes that there is space for. */
  capacity = Infinity

  list(): Promise<number[]> {
    return Promise.resolve([...this.files.keys()].sort((a, b) => a - b))
  }

  create(number: number): Promise<SegmentFile> {
    if (this.failing === 'create') return refuse('create')
    this.files.set(number, Buffer.alloc(0))
    this.durable.set(number, 0)
    return Promise.resolve({
      append: (chunks) => {
        const content = this.files.get(number) ?? Buffer.alloc(0)
        const wanted = chunks.reduce((sum, { length }) => sum + length, this.#used)
        if (this.failing === 'append' || wanted > this.capacity) return refuse('append')
        this.files.set(number, Buffer.concat([content, ...chunks]))
        return Promise.resolve()
      },
      sync: async () => {
        if (this.failing === 'sync') return refuse('sync')
        const length = this.files.get(number)?.length ?? 0
        if (this.gate !== undefined) await this.gate
        this.durable.set(number, length)
      },
      close: () => Promise.resolve(),
    })
  }

  read(number: number, at: number, into: Buffer): Promise<number> {
    return Promise.resolve((this.files.get(number) ?? Buffer.alloc(0)).subarray(at).copy(into))
  }

  async remove(number: number): Promise<void> {
    if (this.failing === 'remove') return refuse('remove')
    if (this.removing !== undefined) await this.removing
    this.files.delete(number)
  }

  close(): Promise<void> {
    return Promise.resolve()
  }

  get #used(): number {
    let sum = 0
    for (const { length } of this.files.values()) sum += length
    return sum
  }

  /** The same segments with other content. */
  static of(files: Iterable<readonly [number, Buffer]>): MemorySegments {
    const store = new MemorySegments()
    for (const [number, content] of files) store.files.set(number, content)
    return store
  }
}

function refuse(what: string): Promise<never> {
  return Promise.reject(new Fault('NO_SPACE', `no space to ${what}`))
}
