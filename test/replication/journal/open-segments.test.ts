import t from 'tap'

import { OpenSegments } from '../../../replication/journal/open-segments.ts'
import type { StateFile } from '../../../replication/state-files.ts'

/** Files that each read as their number, and count what is open. */
class CountedFiles {
  readonly opened: number[] = []
  readonly open = new Set<object>()
  most = 0
  /** Resolves what is being read while it is set. */
  hold: Promise<void> | undefined
  failure: Error | undefined

  readonly segments = new OpenSegments((segment) => {
    this.opened.push(segment)
    if (this.failure !== undefined) return Promise.reject(this.failure)
    return Promise.resolve(this.#file(segment))
  })

  async read(segment: number): Promise<number> {
    const into = Buffer.alloc(1)
    await this.segments.read(segment, 0, into)
    return into.readUInt8()
  }

  #file(segment: number): StateFile {
    const handle = {}
    this.open.add(handle)
    this.most = Math.max(this.most, this.open.size)
    return {
      read: async (into) => {
        await this.hold
        if (this.failure !== undefined) throw this.failure
        if (!this.open.has(handle)) throw new Error('it was closed while it was read')
        into.fill(segment)
        return into.length
      },
      write: () => Promise.reject(new Error('not for writing')),
      sync: () => Promise.reject(new Error('not for writing')),
      empty: () => Promise.reject(new Error('not for writing')),
      close: () => {
        if (!this.open.delete(handle)) return Promise.reject(new Error('closed twice'))
        return Promise.resolve()
      },
    }
  }
}

void t.test('a segment is opened once for all of its records', async (t) => {
  const files = new CountedFiles()
  for (const segment of [1, 2, 1, 2, 2, 1]) t.equal(await files.read(segment), segment)
  const found = await Promise.all([3, 3, 3].map((segment) => files.read(segment)))
  t.same(found, [3, 3, 3])
  t.same(files.opened, [1, 2, 3])
  await files.segments.close()
  t.equal(files.open.size, 0)
})

void t.test('a bounded number stays open, those that were read last', async (t) => {
  const files = new CountedFiles()
  for (let segment = 1; segment <= 100; segment += 1) {
    t.equal(await files.read(segment), segment)
    await files.read(1)
  }
  t.ok(files.most <= 17, `${files.most} were open at a time`)
  t.equal(files.opened.filter((segment) => segment === 1).length, 1, 'the busy one stays open')
  t.equal(files.open.size, 16)
})

void t.test('what is being read is closed afterwards, and not read from again', async (t) => {
  const files = new CountedFiles()
  let go: () => void = () => undefined
  files.hold = new Promise((resolve) => (go = resolve))
  const readers = [files.read(1), files.read(1)]
  await new Promise((resolve) => setImmediate(resolve))
  await files.segments.forget(1)
  t.equal(files.open.size, 1)
  go()
  t.same(await Promise.all(readers), [1, 1])
  t.equal(files.open.size, 0)
  t.equal(await files.read(1), 1)
  t.same(files.opened, [1, 1])
  await files.segments.forget(7)
})

void t.test('after an error the segment is opened anew', async (t) => {
  const files = new CountedFiles()
  files.failure = new Error('no more descriptors')
  await t.rejects(files.read(1), files.failure)
  files.failure = undefined
  t.equal(await files.read(1), 1)
  files.failure = new Error('the disk is gone')
  await t.rejects(Promise.all([files.read(1), files.read(1)]), files.failure)
  files.failure = undefined
  t.equal(await files.read(1), 1)
  t.same(files.opened, [1, 1, 1])
  await files.segments.close()
  t.equal(files.open.size, 0)
})
