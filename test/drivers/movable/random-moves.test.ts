/**
 * Random moves beside random requests, against a model. The images are as unkind as images may be: what was not flushed
 * is gone when they are closed, nothing answers in order, and every step may fail or hang.
 */

import t, { type Test } from 'tap'

import type { BlockDevice } from '../../../core/block-device.ts'
import { Fault } from '../../../core/fault.ts'
import { SILENT } from '../../../core/logger.ts'
import { below, seededRandom, type Random } from '../../../core/seeded-random.ts'
import { Mover, type Source } from '../../../drivers/movable/mover.ts'
import { ManualClock } from '../../support/manual-clock.ts'
import { RecordingDevice } from '../recording-device.ts'

const MOVES = Number(process.env['MOVES'] ?? 2000)
const SEED = Number(process.env['MOVES_SEED'] ?? Math.floor(Math.random() * 2 ** 31))
const BLOCKS = 32
const BLOCK = 16

/** What lies on the disk below, whatever pipeline shows it; at most one has it open. */
class Store {
  durable = Buffer.alloc(BLOCKS * BLOCK)
  holder: Unkind | undefined
  readonly complaints: string[] = []
}

/** Some turns of the event loop. */
async function turns(count: number): Promise<void> {
  for (let turn = 0; turn < count; turn += 1) await new Promise(setImmediate)
}

class Unkind extends RecordingDevice {
  readonly #store: Store
  readonly #random: Random
  #closed = false

  constructor(store: Store, random: Random) {
    super({ size: BLOCKS * BLOCK })
    this.#store = store
    this.#random = random
    this.bytes = Buffer.from(store.durable)
    if (store.holder !== undefined) store.complaints.push('two pipelines have the image')
    store.holder = this
  }

  override async read(into: Buffer, at: number): Promise<void> {
    await this.#work()
    await super.read(into, at)
  }

  override async write(from: Buffer, at: number): Promise<void> {
    await this.#work()
    await super.write(from, at, 0)
  }

  override async flush(): Promise<void> {
    await this.#work()
    if (below(this.#random, 40) === 0) throw new Fault('IO', 'the flush failed')
    this.#store.durable = Buffer.from(this.bytes)
  }

  override async close(): Promise<void> {
    this.#closed = true
    await turns(below(this.#random, 3))
    this.#store.holder = undefined
    if (below(this.#random, 40) === 0) throw new Fault('IO', 'the close failed')
  }

  async #work(): Promise<void> {
    this.#use()
    await turns(below(this.#random, 4))
    this.#use()
  }

  #use(): void {
    if (this.#closed) this.#store.complaints.push('a request met a closed pipeline')
  }
}

class UnkindSource implements Source {
  readonly pipeline: string
  readonly #store: Store
  readonly #random: Random

  constructor(pipeline: string, store: Store, random: Random) {
    this.pipeline = pipeline
    this.#store = store
    this.#random = random
  }

  async open(): Promise<BlockDevice> {
    await turns(below(this.#random, 3))
    if (this.#store.holder !== undefined) throw new Fault('IN_USE', 'the image is in use')
    const fate = below(this.#random, 8)
    if (fate === 0) throw new Fault('NOT_FOUND', 'no such image')
    // It never comes, and holds nothing.
    if (fate === 1) return new Promise(() => undefined)
    return new Unkind(this.#store, this.#random)
  }

  foresee(): Promise<number | undefined> {
    const fate = below(this.#random, 10)
    if (fate === 0) return Promise.reject(new Fault('INVALID', 'no image'))
    return Promise.resolve(fate < 5 ? undefined : BLOCKS * BLOCK)
  }
}

class Guest {
  readonly #disk: BlockDevice
  readonly #random: Random
  readonly #model: Uint8Array
  readonly #busy = new Set<number>()
  readonly failures: string[] = []
  asked = 0
  answered = 0
  refused = 0

  constructor(disk: BlockDevice, random: Random) {
    this.#disk = disk
    this.#random = random
    this.#model = new Uint8Array(BLOCKS)
  }

  /** One request, on a block that no other is on. */
  ask(): void {
    const block = below(this.#random, BLOCKS)
    if (this.#busy.has(block)) return
    this.#busy.add(block)
    this.asked += 1
    const value = below(this.#random, 256)
    const request = below(this.#random, 2) === 0 ? this.#read(block) : this.#write(block, value)
    void request
      .catch((error: unknown) => {
        this.refused += 1
        const expected =
          error instanceof Fault && (error.code === 'IO' || error.code === 'SHUTDOWN')
        if (!expected) this.failures.push(String(error))
      })
      .finally(() => {
        this.answered += 1
        this.#busy.delete(block)
      })
  }

  async #read(block: number): Promise<void> {
    const into = Buffer.alloc(BLOCK)
    await this.#disk.read(into, block * BLOCK)
    const right = into.every((byte) => byte === this.#model[block])
    if (!right) this.failures.push(`block ${block} is ${into[0]}, not ${this.#model[block]}`)
  }

  async #write(block: number, value: number): Promise<void> {
    await this.#disk.write(Buffer.alloc(BLOCK, value), block * BLOCK, 0)
    this.#model[block] = value
  }

  async checkAll(): Promise<void> {
    for (let block = 0; block < BLOCKS; block += 1) await this.#read(block)
  }
}

/** @returns whether it did what it says */
async function randomMove(
  mover: Mover,
  sources: readonly Source[],
  random: Random,
): Promise<boolean> {
  const to = sources[below(random, sources.length)]
  const kinds: (() => Promise<unknown>)[] = [
    () => mover.reopen(to ?? sources[0]!, 1000),
    () => mover.pause(1 + below(random, 2000)),
    () => mover.resume(below(random, 2) === 0 ? undefined : to, 1000),
  ]
  try {
    await kinds[below(random, kinds.length)]?.()
    return true
  } catch (error) {
    if (error instanceof Fault && !(error.cause instanceof TypeError)) return false
    throw error
  }
}

async function run(t: Test, seed: number): Promise<void> {
  const random = seededRandom(seed)
  const store = new Store()
  const clock = new ManualClock()
  const sources = ['a', 'b', 'c'].map((name) => new UnkindSource(name, store, random))
  const options = { exportName: 'disk', sizeFixed: false, timers: clock, nowMs: clock.nowMs }
  const first = new Unkind(store, random)
  const mover = new Mover(sources[0]!, first, {
    ...{ ...options, logger: SILENT },
    onEvent: () => undefined,
  })
  const guest = new Guest(mover.device, random)
  const moving = new Set<Promise<void>>()
  let moved = 0
  for (let move = 0; move < MOVES; move += 1) {
    const running = randomMove(mover, sources, random).then((done) => {
      moved += done ? 1 : 0
      moving.delete(running)
    })
    moving.add(running)
    for (let count = below(random, 6); count > 0; count -= 1) guest.ask()
    await turns(below(random, 4))
    if (below(random, 4) === 0) await clock.advance(below(random, 1500))
  }
  while (moving.size > 0) await clock.advance(500)
  for (let tries = 0; mover.status.state !== 'serving' && tries < 200; tries += 1) {
    const resuming = mover.resume(undefined, 1000).catch(() => 0)
    await turns(10)
    await clock.advance(3000)
    await resuming
  }
  while (guest.answered < guest.asked) await clock.advance(100)
  await guest.checkAll()
  await mover.device.close()
  t.strictSame([store.complaints, guest.failures.slice(0, 3)], [[], []], `seed ${seed}`)
  t.equal(store.holder, undefined, 'nothing is left open')
  t.equal(clock.waiting, 0, 'no timer is left')
  t.ok(moved > MOVES / 10, `${moved} commands succeeded`)
  t.ok(guest.asked > MOVES && guest.refused < guest.asked / 2, `${guest.refused} were refused`)
}

void t.test(
  'no request is lost, wrong or answered by a closed pipeline, whatever moves',
  async (t) => {
    await run(t, SEED)
  },
)
