/** BLOCK_STATUS: what it tells, in either form of reply, and how much of it. */

import t, { type Test } from 'tap'

import type { Extent, MapExtent } from '../../core/block-device.ts'
import { KiB, MiB } from '../../core/units.ts'
import { stage, type RawClient, type Stage } from './harness.ts'
import { ALL_CAPABILITIES, MemoryDevice } from './memory-device.ts'
import {
  BLOCK_STATUS,
  CHUNKED,
  READ,
  REQ_ONE,
  answer,
  ask,
  askWith,
  chunkOption,
  errorOf,
  filter,
  option,
  metaPayload,
  reply,
  setContexts,
  type Chunked,
} from './wire.ts'

const SIZE = 8 * MiB
const ALL = ['base:allocation', 'qemu:allocation-depth', 'colotap:dirty']
const [ALLOCATION, DEPTH, DIRTY] = [1, 2, 3]

const EXTENTS: readonly Extent[] = [
  { at: 0, length: 1 * MiB, kind: 'data' },
  { at: 1 * MiB, length: 1 * MiB, kind: 'data' },
  { at: 2 * MiB, length: 2 * MiB, kind: 'hole' },
  { at: 4 * MiB, length: 1 * MiB, kind: 'zero' },
  { at: 5 * MiB, length: 3 * MiB, kind: 'data' },
]

function device(): MemoryDevice {
  const made = new MemoryDevice(SIZE)
  made.can = { ...ALL_CAPABILITIES, status: true }
  made.extents = EXTENTS
  made.maps = {
    depth: (at, length) => [{ at, length, value: 2 }],
    dirty: (at, length) =>
      Promise.resolve<MapExtent[]>([
        { at, length: 512, value: 1 },
        ...(length > 512 ? [{ at: at + 512, length: length - 512, value: 0 }] : []),
      ]),
  }
  return made
}

async function attached(
  t: Test,
  form: Chunked,
  contexts: readonly string[] = ALL,
): Promise<Stage & { client: RawClient }> {
  const on = await stage(t, { device: device() })
  const client = await on.rawAttached(chunkOption(form), setContexts('disk', ...contexts))
  return { ...on, client }
}

for (const form of CHUNKED) {
  void t.test(`every selected context has its chunk (${form})`, async (t) => {
    const { client } = await attached(t, form)
    client.send(ask(form, BLOCK_STATUS, 9, 512 * KiB, 5 * MiB))
    const chunks = await reply(client, form)
    t.strictSame(
      chunks.map(({ content }) => content),
      [
        {
          what: 'status',
          id: ALLOCATION,
          runs: [
            [1536 * KiB, 0],
            [2 * MiB, 3],
            [1 * MiB, 2],
            [512 * KiB, 0],
          ],
        },
        { what: 'status', id: DEPTH, runs: [[5 * MiB, 2]] },
        {
          what: 'status',
          id: DIRTY,
          runs: [
            [512, 1],
            [5 * MiB - 512, 0],
          ],
        },
      ],
      'neighbours alike are one, and nothing reaches beyond the range',
    )
    t.strictSame(
      chunks.map(({ done, cookie }) => [done, cookie]),
      [
        [false, 9n],
        [false, 9n],
        [true, 9n],
      ],
    )
  })

  void t.test(`only what was selected is told (${form})`, async (t) => {
    const { client } = await attached(t, form, ['colotap:dirty'])
    client.send(ask(form, BLOCK_STATUS, 1, 0, 512))
    t.strictSame(await answer(client, form), [{ what: 'status', id: DIRTY, runs: [[512, 1]] }])
  })

  void t.test(`with REQ_ONE each context says one thing, within the range (${form})`, async (t) => {
    const { client } = await attached(t, form)
    client.send(ask(form, BLOCK_STATUS, 1, 2 * MiB, 4 * MiB, REQ_ONE))
    t.strictSame(await answer(client, form), [
      { what: 'status', id: ALLOCATION, runs: [[2 * MiB, 3]] },
      { what: 'status', id: DEPTH, runs: [[4 * MiB, 2]] },
      { what: 'status', id: DIRTY, runs: [[512, 1]] },
    ])
    client.send(ask(form, BLOCK_STATUS, 1, 2 * MiB, 1000, REQ_ONE))
    const [first] = await answer(client, form)
    t.strictSame(first, { what: 'status', id: ALLOCATION, runs: [[1000, 3]] })
  })

  void t.test(`a disk of many pieces is told in bounded parts (${form})`, async (t) => {
    const { client, device, pool } = await attached(t, form)
    const pieces: Extent[] = []
    for (let at = 0; at < SIZE; at += 1024)
      pieces.push({ at, length: 512, kind: 'data' }, { at: at + 512, length: 512, kind: 'hole' })
    device.extents = pieces
    let told = 0
    for (let at = 0; at < SIZE;) {
      client.send(ask(form, BLOCK_STATUS, 1, at, SIZE - at))
      const [first] = await answer(client, form)
      if (first?.what !== 'status') throw new Error('no status')
      for (const [length, value] of first.runs) {
        if (length !== 512 || value !== (at % 1024 === 0 ? 0 : 3)) t.fail(`wrong at ${at}`)
        at += length
      }
      told += 1
    }
    t.ok(told > 1, 'not all at once')
    t.ok(pool.bytesAllocated <= 1 * MiB)
  })

  void t.test(`a bad range is an error, not a status (${form})`, async (t) => {
    const { client } = await attached(t, form)
    const cases: [string, number, number][] = [
      ['beyond the end', SIZE - 512, 1024],
      ['at the end', SIZE, 512],
      ['of nothing', 0, 0],
    ]
    for (const [what, at, length] of cases) {
      client.send(ask(form, BLOCK_STATUS, 1, at, length))
      t.equal(await errorOf(client, form), 22, what)
    }
    client.send(ask(form, BLOCK_STATUS, 1, SIZE - 512, 512))
    t.equal(await errorOf(client, form), 0)
  })

  void t.test(`a device that cannot tell is all data (${form})`, async (t) => {
    const { client, device } = await attached(t, form, ['base:allocation'])
    device.extents = undefined
    client.send(ask(form, BLOCK_STATUS, 1, 0, SIZE))
    t.strictSame(await answer(client, form), [
      { what: 'status', id: ALLOCATION, runs: [[SIZE, 0]] },
    ])
  })
}

void t.test('without a selection, or without chunks, there is no status', async (t) => {
  const { rawAttached } = await stage(t, { device: device() })
  const listed = await rawAttached(
    chunkOption('structured'),
    option(9, metaPayload('disk', 'base:')),
  )
  listed.send(ask('structured', BLOCK_STATUS, 1, 0, 512))
  t.equal(await errorOf(listed, 'structured'), 22)
  const simple = await rawAttached()
  simple.send(ask('structured', BLOCK_STATUS, 1, 0, 512))
  t.strictSame(await simple.reply(), { error: 22, cookie: 1, data: Buffer.alloc(0) })
})

void t.test('a payload chooses among the selected contexts', async (t) => {
  const { client } = await attached(t, 'extended')
  client.send(askWith(BLOCK_STATUS, 1, 4096, filter(512, DIRTY)))
  t.strictSame(await answer(client, 'extended'), [{ what: 'status', id: DIRTY, runs: [[512, 1]] }])
  client.send(askWith(BLOCK_STATUS, 1, 0, filter(1024, DIRTY, ALLOCATION), REQ_ONE))
  t.strictSame(await answer(client, 'extended'), [
    { what: 'status', id: ALLOCATION, runs: [[1024, 0]] },
    { what: 'status', id: DIRTY, runs: [[512, 1]] },
  ])
})

void t.test('a payload that is no choice is drained and refused', async (t) => {
  const { client } = await attached(t, 'extended', ['base:allocation', 'colotap:dirty'])
  const cases: [string, Buffer][] = [
    ['a context that was not selected', filter(512, DEPTH)],
    ['a context that does not exist', filter(512, 77)],
    ['the same context twice', filter(512, DIRTY, DIRTY)],
    ['one too many', filter(512, ALLOCATION, DIRTY, DEPTH)],
    ['no context', filter(512)],
    ['half a context', filter(512, DIRTY).subarray(0, 10)],
    ['half a length', Buffer.alloc(4)],
    ['nothing', Buffer.alloc(0)],
    ['the status of no bytes', filter(0, DIRTY)],
    ['a range beyond the end', filter(2n ** 64n - 1n, ALLOCATION)],
    ['a hundred kilobytes', Buffer.alloc(100 * KiB)],
  ]
  for (const [what, payload] of cases) {
    client.send(askWith(BLOCK_STATUS, 1, 0, payload))
    t.equal(await errorOf(client, 'extended'), 22, what)
  }
  client.send(ask('extended', READ, 1, 0, 10))
  t.strictSame(await answer(client, 'extended'), [{ what: 'data', at: 0, data: Buffer.alloc(10) }])
})
