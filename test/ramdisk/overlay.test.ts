import fc from 'fast-check'
import t from 'tap'
import { Fault } from '../../core/fault.ts'
import { isPromise, type MaybePromise } from '../../core/maybe-promise.ts'
import { MiB, SECTOR } from '../../core/units.ts'
import { Epoch } from '../../ramdisk/epoch.ts'
import { readThrough } from '../../ramdisk/overlay.ts'
import { PageMemory } from '../../ramdisk/page-memory.ts'
import { completed, runUntil, tagged, tagsOf, UnrulyImage } from './unruly-image.ts'

const SECTORS = 40

function epoch(): Epoch {
  return new Epoch(new PageMemory(16 * MiB), SECTORS * SECTOR)
}

/** An image that answers at once and remembers what it was asked for, in sectors. */
class PromptImage {
  readonly content = tagged(1, SECTORS * SECTOR)
  readonly reads: [number, number][] = []

  read(into: Buffer, at: number): MaybePromise<void> {
    this.reads.push([at / SECTOR, into.length / SECTOR])
    this.content.copy(into, 0, at, at + into.length)
  }
}

void t.test('the image is asked for what no layer holds, and for nothing else', async (t) => {
  const image = new PromptImage()
  const [older, newer] = [epoch(), epoch()]
  older.write(tagged(2, 4 * SECTOR), 2 * SECTOR)
  newer.write(tagged(3, 2 * SECTOR), 4 * SECTOR)
  newer.zero(7 * SECTOR, SECTOR, true)
  const into = Buffer.alloc(10 * SECTOR)
  await completed(readThrough(image, [older, newer], into, 0))
  t.same(tagsOf(into), [1, 1, 2, 2, 3, 3, 1, 0, 1, 1])
  t.same(image.reads, [
    [0, 2],
    [6, 1],
    [8, 2],
  ])
})

void t.test('what layers hold together is read without the image, and at once', (t) => {
  const image = new PromptImage()
  const [older, newer] = [epoch(), epoch()]
  older.write(tagged(2, 3 * SECTOR), 0)
  newer.write(tagged(3, 3 * SECTOR), 2 * SECTOR)
  const into = Buffer.alloc(5 * SECTOR)
  t.notOk(isPromise(readThrough(image, [older, newer], into, 0)))
  t.same(tagsOf(into), [2, 2, 3, 3, 3])
  t.same(image.reads, [])
  t.end()
})

void t.test('what no layer holds is one read of the image, into the buffer of the request', (t) => {
  const layer = epoch()
  layer.write(tagged(2, SECTOR), 0)
  const into = Buffer.alloc(5 * SECTOR)
  let used: Buffer | undefined
  const image = { read: (buffer: Buffer) => void (used = buffer) }
  t.notOk(isPromise(readThrough(image, [layer, epoch()], into, SECTOR)))
  t.equal(used, into)
  t.end()
})

void t.test('layers may be flushed and dropped while the image is read', async (t) => {
  const image = new UnrulyImage(SECTORS * SECTOR, 1)
  image.unruly = false
  const layer = epoch()
  layer.write(tagged(2, 2 * SECTOR), SECTOR)
  const into = Buffer.alloc(4 * SECTOR)
  const read = readThrough(image, [layer], into, 0)
  t.ok(isPromise(read))
  layer.clear(SECTOR, SECTOR)
  layer.release()
  await runUntil(Promise.resolve(read), image)
  t.same(tagsOf(into), [0, 2, 2, 0])
})

void t.test(
  'a failed read of one gap fails the request, when nothing uses its buffer any more',
  async (t) => {
    const layer = epoch()
    for (let sector = 1; sector < SECTORS; sector += 2)
      layer.write(tagged(2, SECTOR), sector * SECTOR)
    const pending: ((fault?: Fault) => void)[] = []
    const image = {
      read: () =>
        new Promise<void>((resolve, reject) => {
          pending.push((fault) => {
            if (fault === undefined) resolve()
            else reject(fault)
          })
        }),
    }
    const state = { over: false }
    const read = Promise.resolve(readThrough(image, [layer], Buffer.alloc(SECTORS * SECTOR), 0))
    const end = t.rejects(read, { code: 'IO' }).then(() => (state.over = true))
    await new Promise((resolve) => setImmediate(resolve))
    t.ok(pending.length > 1 && pending.length <= 8, `${pending.length} reads in flight`)
    pending.shift()?.(new Fault('IO', 'bad sector'))
    await new Promise((resolve) => setImmediate(resolve))
    t.notOk(state.over, 'the others are still under way')
    t.ok(pending.length <= 7, 'no further read is begun')
    for (const finish of pending.splice(0)) finish()
    await end
  },
)

void t.test('a read is right for every sector, for any layers and any gaps', async (t) => {
  const range = fc.record({ first: fc.nat(SECTORS - 1), count: fc.integer({ min: 1, max: 6 }) })
  const writes = fc.array(range, { maxLength: 12, size: 'max' })
  await fc.assert(
    fc.asyncProperty(
      fc.array(writes, { maxLength: 3 }),
      range,
      fc.nat(),
      async (all, asked, seed) => {
        const image = new UnrulyImage(SECTORS * SECTOR, seed)
        image.content.set(tagged(1, SECTORS * SECTOR))
        const model = Array.from({ length: SECTORS }, () => 1)
        const cut = ({ first, count }: { first: number; count: number }) =>
          Math.min(count, SECTORS - first)
        let tag = 1
        const layers = all.map((writes) => {
          const layer = epoch()
          for (const write of writes) {
            tag += 1
            layer.write(tagged(tag, cut(write) * SECTOR), write.first * SECTOR)
            model.fill(tag, write.first, write.first + cut(write))
          }
          return layer
        })
        for (const part of [asked, { first: 0, count: SECTORS }]) {
          const into = Buffer.alloc(cut(part) * SECTOR)
          try {
            const read = readThrough(image, layers, into, part.first * SECTOR)
            if (isPromise(read)) await runUntil(read, image)
          } catch (error) {
            if (error instanceof Fault) continue
            throw error
          }
          const wanted = model.slice(part.first, part.first + cut(part))
          if (String(tagsOf(into)) !== String(wanted)) throw new Error(`not ${String(wanted)}`)
        }
      },
    ),
    { numRuns: 200 },
  )
  t.end()
})
