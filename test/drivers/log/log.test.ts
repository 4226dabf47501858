import { readFile, truncate, writeFile } from 'node:fs/promises'
import { join } from 'node:path'

import t, { type Test } from 'tap'

import type { BlockDevice } from '../../../core/block-device.ts'
import type { ChangeLog } from '../../../core/change-log.ts'
import { Fault } from '../../../core/fault.ts'
import { Guard } from '../../../drivers/guard.ts'
import { log } from '../../../drivers/log/log.ts'
import { openContext } from '../open-context.ts'
import { RecordingDevice } from '../recording-device.ts'

const SIZE = 1 << 20
const BLOCK = 4096

interface Opened {
  readonly disk: BlockDevice
  readonly below: RecordingDevice
  readonly changes: ChangeLog
  readonly close: () => Promise<void>
}

async function open(
  path: string,
  settings: Record<string, string> = { block: '4K' },
  below = new RecordingDevice({ size: SIZE }),
): Promise<Opened> {
  const stage = { driver: 'log', target: path, settings: new Map(Object.entries(settings)) }
  const disk = new Guard(await log.open(stage, below, openContext()), false)
  const changes = disk.changeLog
  if (changes === undefined) throw new Error('a log layer has a change log')
  return { disk, below, changes, close: () => disk.close() }
}

/** Ranges of the backup under way. */
function pending(changes: ChangeLog): string[] {
  const found: string[] = []
  for (
    let range = changes.next(0);
    range !== undefined;
    range = changes.next(range.at + range.length)
  ) {
    found.push(`${range.at}+${range.length}`)
  }
  return found
}

/** What a backup must copy; it succeeds. */
function backUp(changes: ChangeLog): string[] {
  changes.begin()
  const found = pending(changes)
  changes.end(true)
  return found
}

const logIn = (t: Test): string => join(t.testdir(), 'disk.log')
const ALL = [`0+${SIZE}`]

void t.test(
  'the first backup copies everything, the next one what was changed since',
  async (t) => {
    const { disk, changes, close } = await open(logIn(t))
    t.match(changes.status, { block: BLOCK, unknown: /new/, backupBytes: undefined })
    t.strictSame(backUp(changes), ALL)
    t.match(changes.status, { unknown: undefined, changedBytes: 0 })
    await disk.write(Buffer.alloc(10, 1), BLOCK - 1, 0)
    await disk.zero(10 * BLOCK, BLOCK, 0)
    await disk.trim(20 * BLOCK, 2 * BLOCK, 0)
    await disk.read(Buffer.alloc(BLOCK), 30 * BLOCK)
    await disk.flush()
    t.strictSame(backUp(changes), ['0+8192', '40960+4096', '81920+8192'])
    t.strictSame(backUp(changes), [])
    await close()
  },
)

void t.test('a clean close keeps the log', async (t) => {
  const path = logIn(t)
  const first = await open(path)
  backUp(first.changes)
  await first.disk.write(Buffer.alloc(1, 1), 5 * BLOCK, 0)
  await first.close()
  const second = await open(path, {})
  t.match(second.changes.status, { block: BLOCK, unknown: undefined })
  t.strictSame(backUp(second.changes), ['20480+4096'])
  await second.close()
})

void t.test('after anything but a clean close every block counts as changed', async (t) => {
  const path = logIn(t)
  const first = await open(path)
  backUp(first.changes)
  const crashed = await readFile(path)
  await first.close()
  const closed = await readFile(path)
  const damaged = Buffer.from(closed)
  damaged.writeUInt8(damaged.readUInt8(4096) ^ 1, 4096)
  const torn = Buffer.from(closed)
  torn.writeUInt32BE(0, 12)
  for (const [bytes, why] of [
    [crashed, /not closed/],
    [damaged, /damaged/],
    [torn, /new|damaged/],
    [closed.subarray(0, 4100), /damaged/],
    [closed.subarray(0, 20), /new|damaged/],
  ] as const) {
    const copy = join(t.testdir(), 'copy.log')
    await writeFile(copy, bytes)
    const again = await open(copy)
    t.match(again.changes.status.unknown, why)
    t.strictSame(backUp(again.changes), ALL)
    await again.close()
  }
})

void t.test('that it is unsure outlives a clean close, until a backup has succeeded', async (t) => {
  const path = logIn(t)
  for (let round = 0; round < 2; round += 1) {
    const { changes, close } = await open(path)
    t.ok(changes.status.unknown)
    changes.begin()
    changes.end(false)
    t.ok(changes.status.unknown, 'a failed backup makes nothing sure')
    await close()
  }
  const { changes, close } = await open(path)
  t.strictSame(backUp(changes), ALL)
  await close()
  const after = await open(path)
  t.equal(after.changes.status.unknown, undefined)
  await after.close()
})

void t.test('another size of the disk makes every block count as changed', async (t) => {
  const path = logIn(t)
  const first = await open(path)
  backUp(first.changes)
  await first.close()
  const second = await open(path, {}, new RecordingDevice({ size: SIZE / 2 }))
  t.match(second.changes.status.unknown, /size/)
  t.strictSame(backUp(second.changes), [`0+${SIZE / 2}`])
  await second.close()
})

void t.test('what is changed during a backup is for the next one', async (t) => {
  const { disk, changes, close } = await open(logIn(t))
  backUp(changes)
  await disk.write(Buffer.alloc(1), 0, 0)
  changes.begin()
  await disk.write(Buffer.alloc(1), 8 * BLOCK, 0)
  t.strictSame(pending(changes), ['0+4096'])
  t.match(changes.status, { backupBytes: BLOCK, changedBytes: BLOCK })
  changes.end(true)
  t.strictSame(backUp(changes), ['32768+4096'])
  await close()
})

void t.test('a backup that fails leaves its blocks to the next one', async (t) => {
  const path = logIn(t)
  const { disk, changes, close } = await open(path)
  backUp(changes)
  await disk.write(Buffer.alloc(1), 0, 0)
  changes.begin()
  await disk.write(Buffer.alloc(1), 8 * BLOCK, 0)
  changes.end(false)
  t.strictSame(pendingOfNew(changes), ['0+4096', '32768+4096'])
  await close()
  const again = await open(path)
  t.strictSame(pendingOfNew(again.changes), ['0+4096', '32768+4096'], 'a close counts as failure')
  await again.close()
})

/** Begins a backup that nobody ends. */
function pendingOfNew(changes: ChangeLog): string[] {
  changes.begin()
  return pending(changes)
}

void t.test(
  'a change that is under way when a backup begins counts for it and for the next one',
  async (t) => {
    for (const fails of [false, true]) {
      const below = new RecordingDevice({ size: SIZE, later: true })
      const { disk, changes, close } = await open(logIn(t), { block: '4K' }, below)
      backUp(changes)
      let finish = (): void => undefined
      below.gate = new Promise((resolve) => (finish = resolve))
      if (fails) below.gate = below.gate.then(() => Promise.reject(new Fault('IO', 'broken')))
      const writing = Promise.resolve(disk.write(Buffer.alloc(1), 3 * BLOCK, 0)).catch(
        () => 'failed',
      )
      changes.begin()
      t.strictSame(pending(changes), ['12288+4096'], 'the backup may read it before it is written')
      finish()
      t.equal(await writing, fails ? 'failed' : undefined)
      changes.end(true)
      t.strictSame(backUp(changes), ['12288+4096'])
      await close()
    }
  },
)

void t.test('a resize keeps what is known', async (t) => {
  const { disk, changes, close } = await open(logIn(t))
  backUp(changes)
  await disk.write(Buffer.alloc(1), 0, 0)
  await disk.resize(SIZE + 100)
  t.strictSame(backUp(changes), ['0+4096', `${SIZE}+100`])
  await close()
})

void t.test('a log in other blocks is carried over', async (t) => {
  const path = logIn(t)
  const first = await open(path)
  backUp(first.changes)
  await first.disk.write(Buffer.alloc(1), 17 * BLOCK, 0)
  await first.close()
  const second = await open(path, { block: '64K' })
  t.strictSame(backUp(second.changes), ['65536+65536'])
  await second.close()
})

void t.test('backups are begun and ended in turn', async (t) => {
  const { changes, close } = await open(logIn(t))
  t.throws(() => changes.next(0), { code: 'NOT_PERMITTED' })
  t.throws(() => changes.end(true), { code: 'NOT_PERMITTED' })
  changes.begin()
  t.throws(() => changes.begin(), { code: 'NOT_PERMITTED' })
  await close()
})

void t.test('what is no change log is refused and left as it is', async (t) => {
  const path = join(t.testdir({ image: 'precious' }), 'image')
  await t.rejects(open(path), { code: 'INVALID', message: /no change log/ })
  t.equal(await readFile(path, 'utf8'), 'precious')
  await t.rejects(open(t.testdir()), { name: 'Fault' })
  await t.rejects(open(join(t.testdir(), 'no', 'where')), { name: 'Fault', message: /no.where/ })
  for (const block of ['3K', '5000', '2G']) {
    await t.rejects(open(logIn(t), { block }), { code: 'INVALID' })
  }
})

void t.test('a log has one user at a time', async (t) => {
  const path = logIn(t)
  const first = await open(path)
  await t.rejects(open(path), { code: 'IN_USE' })
  await first.close()
  await (await open(path)).close()
})

void t.test(
  'a log that cannot be saved makes the close fail, and says so by its state',
  async (t) => {
    const path = logIn(t)
    const first = await open(path)
    backUp(first.changes)
    first.below.close = () => Promise.reject(new Fault('IO', 'the image did not close well'))
    await t.rejects(first.close(), { message: /image did not close/ })
    const second = await open(path)
    t.equal(second.changes.status.unknown, undefined, 'the log itself was saved')
    await second.close()
    await truncate(path, 0)
    const third = await open(path)
    t.match(third.changes.status.unknown, /new/)
    await third.close()
  },
)
