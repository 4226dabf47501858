/** Both sides are compared, and copied by what differs, while guests write and links break. */

import t from 'tap'

import { Fault } from '../../../core/fault.ts'
import { KiB, MiB } from '../../../core/units.ts'
import { SUM_BLOCK } from '../../../replication/comparison/checksums.ts'
import { MOST_ASKED, MOST_COMPARED } from '../../../replication/comparison/comparison.ts'
import { frame, type Frame } from '../../../replication/machine/frame.ts'
import { decodeHello, encodeHello } from '../../../replication/machine/handshake.ts'
import { isProtected, SIZE, startPair, verified, type Pair } from './one-process-pair.ts'

/** Bytes of data that the primary has sent. */
function moved({ sent }: Pair): number {
  return sent.reduce((sum, { type, payload }) => sum + (type === 'write' ? payload.length : 0), 0)
}

const filled = (value: number): Buffer => Buffer.alloc(SIZE, value)

void t.test('nothing differs while a guest writes, with and without checkpoints', async (t) => {
  const pair = await startPair({ primary: { compareBytes: 64 * KiB } })
  const { primary } = pair
  let writing = true
  let writes = 0
  const guest = async (seed: number): Promise<void> => {
    for (let at = seed; writing; at += 37 * KiB + 512) {
      const length = 512 * (1 + (writes % 90))
      const place = Math.floor(at % (SIZE - length)) & ~511
      await primary.disk.write(Buffer.alloc(length, 1 + (writes % 250)), place, 0)
      writes += 1
      if (writes % 50 === 0) await primary.group.checkpoint(undefined)
      if (writes % 7 === 0) await new Promise(setImmediate)
    }
  }
  const guests = [guest(0), guest(MiB), guest(2 * MiB)]
  for (let times = 0; times < 5; times += 1) {
    const report = await verified(primary)
    t.same(report.ranges, [])
    t.equal(report.state, 'equal')
    t.equal(report.checkedBytes, SIZE)
  }
  writing = false
  await Promise.all(guests)
  t.ok(writes > 100, 'and there were writes')
  await pair.close()
})

void t.test('what the guest of a COLO secondary writes by itself is not compared', async (t) => {
  const pair = await startPair()
  await pair.secondary.disk.write(Buffer.alloc(4096, 9), 8192, 0)
  t.equal((await verified(pair.primary)).state, 'equal')
  await pair.close()
})

void t.test('a difference is loud, and the next connection sends it', async (t) => {
  const pair = await startPair({ contents: { primary: filled(1), secondary: filled(1) } })
  const { primary, secondary } = pair
  const at = 5 * SUM_BLOCK
  secondary.image.bytes[at + 77] = 0xee
  secondary.image.bytes[at + SUM_BLOCK] = 0xee
  const report = await verified(primary)
  t.equal(report.state, 'different')
  t.same(report.ranges, [{ disk: 'a', at, length: 2 * SUM_BLOCK }])
  t.equal(report.differentBytes, 2 * SUM_BLOCK)
  const told = primary.events.map(({ event }) => event).slice(-3)
  t.same(told, ['REPLICATION_ERROR', 'REPLICATION_ERROR', 'REPLICATION_VERIFY'])
  t.match(primary.group.status(), {
    error: /32768 bytes of the secondary differ .*first at 81920 of disk "a"/,
    protection: 'protected',
    disks: [{ dirtyBytes: 2 * SUM_BLOCK }],
    verify: { state: 'different' },
  })
  t.equal(moved(pair), 0, 'nothing is sent unasked')
  await primary.group.checkpoint(undefined)
  t.equal(primary.group.status().disks[0]?.dirtyBytes, 2 * SUM_BLOCK, 'nor forgotten')
  pair.cut()
  await primary.next(isProtected)
  t.equal(moved(pair), 2 * SUM_BLOCK)
  t.match(primary.group.status().recovery, {
    unprotectedMs: Number,
    movedBytes: 2 * SUM_BLOCK,
  })
  await primary.group.checkpoint(undefined)
  t.equal((await verified(primary)).state, 'equal')
  t.equal(primary.group.status().error, null, 'it is over when a verify has found nothing')
  await pair.close()
  t.ok(secondary.image.bytes.equals(primary.image.bytes))
})

void t.test('repair sends what differs, and that only, as one epoch', async (t) => {
  const pair = await startPair({ contents: { primary: filled(1), secondary: filled(1) } })
  const { primary, secondary } = pair
  for (const at of [0, MiB, SIZE - 512]) secondary.image.bytes[at] = 0xee
  const again = primary.next(isProtected)
  const report = await verified(primary, 'repair')
  t.match(report, { state: 'different', repair: true, differentBytes: 3 * SUM_BLOCK })
  t.match(primary.group.status().protection, 'resyncing', 'not protected while it is known to lack')
  await again
  t.equal(moved(pair), 3 * SUM_BLOCK)
  await primary.group.checkpoint(undefined)
  t.equal(primary.group.status().disks[0]?.dirtyBytes, 0)
  t.match(primary.group.status().error, /sent again: verify once more/, 'sticky')
  t.equal((await verified(primary)).state, 'equal')
  t.equal(primary.group.status().error, null)
  await pair.close()
  t.ok(secondary.image.bytes.equals(primary.image.bytes))
})

void t.test(
  'a verify that is canceled, or loses its link, says so, and another may begin',
  async (t) => {
    const pair = await startPair()
    const { primary } = pair
    const ends = [
      () => pair.primary.group.verify('cancel'),
      () => pair.cut(),
      () => pair.primary.group.setReplicating(false),
    ]
    for (const [index, end] of ends.entries()) {
      let answers = 0
      pair.back = (answer) => {
        if (answer.type !== 'sums') return answer
        answers += 1
        if (answers === 2) end()
        return answer
      }
      const again = index === 0 ? undefined : primary.next(isProtected)
      const report = await verified(primary)
      t.equal(report.state, 'unfinished')
      t.match(report.reason, [/operator has canceled/, /cut/, /switched off/][index])
      t.ok(report.checkedBytes < SIZE)
      pair.back = (answer) => answer
      primary.group.setReplicating(true)
      await again
      t.equal((await verified(primary)).state, 'equal')
    }
    t.equal(primary.group.verify('cancel').verify?.state, 'equal', 'canceling none changes nothing')
    await pair.close()
  },
)

void t.test('a verify keeps to the rate, and to a new one', async (t) => {
  const pair = await startPair({ primary: { resyncRate: 1, compareBytes: 64 * KiB } })
  const { primary } = pair
  let answers = 0
  const askedAll = new Promise<void>((resolve) => {
    pair.back = (answer) => {
      if (answer.type === 'sums') answers += 1
      if (answers === MOST_ASKED) resolve()
      return answer
    }
  })
  const ended = verified(primary)
  t.equal(primary.group.status().verify?.state, 'running')
  await askedAll
  for (let turns = 0; turns < 100; turns += 1) await new Promise(setImmediate)
  t.equal(answers, MOST_ASKED, 'what may be asked at once is asked; the rest waits for its seconds')
  t.equal(primary.group.status().verify?.state, 'running')
  primary.group.configure({
    resyncRate: 0,
    onLinkLoss: undefined,
    intervalMs: undefined,
    ack: undefined,
  })
  await ended
  t.equal(primary.group.status().verify?.state, 'equal')
  await pair.close()
})

void t.test('without somebody to compare with, the command says why', async (t) => {
  const pair = await startPair()
  const { primary, secondary } = pair
  t.throws(() => secondary.group.verify('compare'), { message: /this side is a secondary/ })
  primary.group.setReplicating(false)
  t.throws(() => primary.group.verify('compare'), {
    code: 'NOT_PERMITTED',
    message: /not known to be equal now: unprotected \(replication was switched off here.*\)/,
  })
  primary.group.setReplicating(true)
  await primary.next(isProtected)
  pair.back = (answer) => {
    if (answer.type !== 'hello') return answer
    const older = { ...decodeHello(answer.payload), features: [] }
    return { ...answer, payload: encodeHello(older) }
  }
  pair.cut()
  await primary.next(isProtected)
  t.throws(() => primary.group.verify('compare'), { message: /other side cannot compare/ })
  await t.rejects(primary.group.resync(true), { code: 'NOT_SUPPORTED', message: /too old/ })
  t.equal(primary.group.status().protection, 'protected', 'and nothing else happens')
  await pair.close()
})

void t.test('what the secondary cannot read is an error, and no difference', async (t) => {
  const pair = await startPair()
  const { primary, secondary } = pair
  secondary.image.failure = new Fault('IO', 'a bad sector')
  const report = await verified(primary)
  secondary.image.failure = undefined
  t.match(report, {
    state: 'unfinished',
    differentBytes: 0,
    reason: /the secondary cannot read 262144 bytes at \d+ of disk "a"/,
  })
  t.match(secondary.group.status().error, /disk "a": a bad sector/)
  primary.image.failure = new Fault('IO', 'a bad sector here')
  t.match(await verified(primary), { state: 'unfinished', reason: /a bad sector here/ })
  primary.image.failure = undefined
  await pair.close()
})

void t.test('answers that nobody asked for, or of a wrong length, end the link', async (t) => {
  const wrong: readonly ((answer: Frame) => Frame)[] = [
    (answer) => ({ ...answer, position: answer.position + 512 }),
    (answer) => ({ ...answer, extent: 512 }),
    (answer) => ({ ...answer, disk: 7 }),
    (answer) => ({ ...answer, payload: answer.payload.subarray(1) }),
    (answer) => ({ ...answer, payload: Buffer.concat([answer.payload, answer.payload]) }),
  ]
  for (const change of wrong) {
    const pair = await startPair()
    pair.back = (answer) => (answer.type === 'sums' ? change(answer) : answer)
    const report = await verified(pair.primary)
    t.match(report, {
      state: 'unfinished',
      differentBytes: 0,
      reason: /the secondary sent .*checksums/,
    })
    pair.back = (answer) => answer
    await pair.primary.next(isProtected)
    await pair.close()
  }
})

void t.test('a copy with checksums moves what differs, and runs of it', async (t) => {
  const contents = { primary: filled(1), secondary: filled(1) }
  for (const at of [3 * SUM_BLOCK, 4 * SUM_BLOCK, 3 * MiB]) contents.secondary[at] = 0xee
  for (const asked of [true, false]) {
    const pair = await startPair({
      contents,
      primary: { comparesFirst: !asked, identical: asked },
    })
    const { primary, secondary } = pair
    if (asked) {
      t.equal(moved(pair), 0)
      const again = primary.next(isProtected)
      await primary.group.resync(true)
      await again
    }
    t.equal(moved(pair), 3 * SUM_BLOCK, asked ? 'on request' : 'by its settings')
    await primary.group.checkpoint(undefined)
    t.equal((await verified(primary)).state, 'equal')
    await pair.close()
    t.ok(secondary.image.bytes.equals(primary.image.bytes))
  }
})

void t.test('a copy with checksums tells apart what it has compared, moved and done', async (t) => {
  const contents = { primary: filled(1), secondary: filled(1) }
  contents.secondary[3 * MiB] = 0xee
  const pair = await startPair({ contents, primary: { compareBytes: 64 * KiB } })
  const { primary } = pair
  const seen: { sent: number; checked: number; moved: number }[] = []
  pair.back = (answer) => {
    const { resync } = primary.group.status()
    if (answer.type === 'sums' && resync !== null)
      seen.push({ sent: resync.sentBytes, checked: resync.checkedBytes, moved: resync.movedBytes })
    t.ok((resync?.sentBytes ?? 0) <= (resync?.totalBytes ?? 0))
    return answer
  }
  const again = primary.next(isProtected)
  await primary.group.resync(true)
  await again
  const last = seen.at(-1)
  t.ok(last !== undefined && last.checked > 3 * MiB && last.sent > 3 * MiB)
  t.ok(last !== undefined && last.moved <= SUM_BLOCK)
  await pair.close()
})

void t.test('a secondary flushes its image before the first answer on a link', async (t) => {
  const pair = await startPair()
  const { primary, secondary } = pair
  t.notOk(secondary.image.calls.some((call) => call.startsWith('flush')))
  const orders: string[] = []
  pair.back = (answer) => {
    if (answer.type === 'sums') orders.push(secondary.image.calls.at(-1) ?? '')
    return answer
  }
  await verified(primary)
  await verified(primary)
  const flushes = secondary.image.calls.filter((call) => call.startsWith('flush'))
  t.equal(flushes.length, 1, 'once')
  t.ok(orders.length >= 2 * (SIZE / MOST_COMPARED))
  await pair.close()
})

void t.test(
  'who asks for too much, or for what is no range of the disk, loses its link',
  async (t) => {
    const pair = await startPair()
    const hello = { ...(await helloOf(pair)), replica: 'stranger', term: 9 }
    const questions: readonly (readonly [Partial<Frame>, RegExp | undefined])[] = [
      [{ extent: MOST_COMPARED }, undefined],
      [{ extent: 2 * MOST_COMPARED }, /checksums of 524288 bytes at once/],
      [{ extent: 0 }, /not whole sectors/],
      [{ extent: 100 }, /not whole sectors/],
      [{ extent: 512, position: SIZE }, /beyond the end/],
      [{ extent: 512, disk: 3 }, /does not exist/],
    ]
    for (const [fields, refusal] of questions) {
      const { handlers } = connect(pair, hello)
      const ask = (): void => handlers.frame(frame('compare', fields))
      if (refusal === undefined) t.doesNotThrow(ask)
      else t.throws(ask, { code: 'PROTOCOL', message: refusal })
    }
    const { handlers } = connect(pair, hello)
    pair.secondary.image.mode = 'held'
    for (let asked = 0; asked < MOST_ASKED; asked += 1)
      handlers.frame(frame('compare', { position: (asked * MOST_COMPARED) % SIZE, extent: 512 }))
    t.throws(() => handlers.frame(frame('compare', { extent: 512 })), {
      message: /more than 16 questions/,
    })
    pair.secondary.image.mode = 'inline'
    pair.secondary.image.release()
    await pair.close()
  },
)

async function helloOf(pair: Pair): Promise<ReturnType<typeof decodeHello>> {
  let hello: ReturnType<typeof decodeHello> | undefined
  pair.back = (answer) => {
    if (answer.type === 'hello') hello = decodeHello(answer.payload)
    return answer
  }
  pair.cut()
  await pair.primary.next(isProtected)
  if (hello === undefined) throw new Error('a secondary greets')
  return { ...hello, role: 'primary', wrote: true }
}

/** The test is a primary of its own. */
function connect(
  { secondary }: Pair,
  hello: ReturnType<typeof decodeHello>,
): { handlers: ReturnType<typeof secondary.group.take> } {
  const nothing = (): void => undefined
  const link = {
    ...{ peer: 'stranger', closed: false, send: nothing, pause: nothing, resume: nothing },
    ...{ close: nothing, sendData: (_: Frame, handed: () => void): void => handed() },
  }
  return { handlers: secondary.group.take(link, hello) }
}
