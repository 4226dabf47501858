/** What is given to TLS at a time, and when. */

import fc from 'fast-check'
import t from 'tap'

import { KiB, MiB } from '../../core/units.ts'
import { PacedSocket } from '../../nbd/paced-socket.ts'

type Done = (error?: Error | null) => void

/** A socket that writes when it is told to. */
class SlowSocket {
  /** Bytes of each write that was handed over together. */
  readonly batches: Buffer[][] = []
  #corked = false
  #batch: Buffer[] = []
  #dones: Done[] = []

  cork(): void {
    this.#corked = true
  }

  uncork(): void {
    this.#corked = false
    this.batches.push(this.#batch)
    this.#batch = []
  }

  write(bytes: Buffer, done?: Done): boolean {
    if (!this.#corked) throw new Error('pieces come together')
    this.#batch.push(bytes)
    if (done !== undefined) this.#dones.push(done)
    return false
  }

  get held(): number {
    return this.#dones.length
  }

  sent(error?: Error): void {
    for (const done of this.#dones.splice(0)) done(error ?? null)
  }

  get bytes(): Buffer {
    return Buffer.concat(this.batches.flat())
  }
}

const turn = (): Promise<void> => new Promise(setImmediate)

function sizes({ batches }: SlowSocket): number[] {
  return batches.map((batch) => batch.reduce((sum, { length }) => sum + length, 0))
}

void t.test('what is written in one turn leaves together', async (t) => {
  const below = new SlowSocket()
  const paced = new PacedSocket(below)
  const called: number[] = []
  for (let index = 0; index < 100; index += 1)
    paced.write(Buffer.alloc(16, index), () => called.push(index))
  t.equal(below.batches.length, 0, 'not before the turn ends')
  await turn()
  t.strictSame(sizes(below), [1600])
  t.strictSame(called, [], 'nothing has left yet')
  paced.write(Buffer.alloc(7))
  await turn()
  t.equal(below.batches.length, 1, 'TLS has something to do')
  below.sent()
  t.strictSame(
    called,
    Array.from({ length: 100 }, (_, index) => index),
  )
  t.strictSame(sizes(below), [1600, 7])
})

void t.test('a client that takes nothing has one portion with TLS', async (t) => {
  const below = new SlowSocket()
  const paced = new PacedSocket(below)
  const content = Buffer.alloc(32 * MiB)
  content.writeUInt32BE(1, 20 * MiB)
  let done = 0
  for (let index = 0; index < 3; index += 1) {
    paced.write(Buffer.alloc(16))
    paced.write(content, () => (done += 1))
    await turn()
  }
  t.equal(below.held, 1)
  t.ok(sizes(below).every((size) => size <= 256 * KiB))
  while (below.held > 0) below.sent()
  t.ok(sizes(below).every((size) => size <= 256 * KiB))
  t.equal(done, 3)
  const one = Buffer.concat([Buffer.alloc(16), content])
  t.ok(below.bytes.equals(Buffer.concat([one, one, one])))
})

void t.test('after the socket is closed nothing is handed over, and nothing called', async (t) => {
  const below = new SlowSocket()
  const paced = new PacedSocket(below)
  paced.write(Buffer.alloc(1 * MiB), () => t.fail('it has not left'))
  await turn()
  below.sent(new Error('closed'))
  await turn()
  t.equal(below.batches.length, 1)
})

void t.test('bytes and calls keep their order, whatever comes when', async (t) => {
  const step = fc.oneof(
    fc.constantFrom(1, 16, 4096, 100_000, 256 * KiB, 300_000, 700_000).map((size) => ({ size })),
    fc.constantFrom('turn' as const, 'sent' as const),
  )
  await fc.assert(
    fc.asyncProperty(fc.array(step, { maxLength: 30 }), async (steps) => {
      const below = new SlowSocket()
      const paced = new PacedSocket(below)
      const written: Buffer[] = []
      const called: number[] = []
      for (const each of steps) {
        if (each === 'turn') await turn()
        else if (each === 'sent') below.sent()
        else {
          const index = written.length
          const bytes = Buffer.alloc(each.size, index)
          written.push(bytes)
          paced.write(bytes, () => {
            called.push(index)
            const left = written.slice(0, index + 1).reduce((sum, { length }) => sum + length, 0)
            if (below.bytes.length < left) throw new Error('called before it has left')
          })
        }
      }
      do {
        below.sent()
        await turn()
      } while (below.held > 0)
      t.ok(below.bytes.equals(Buffer.concat(written)))
      t.strictSame(called, [...written.keys()])
    }),
    { numRuns: 60 },
  )
})
