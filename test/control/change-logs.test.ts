import t from 'tap'

import type { ControlContext } from '../../control/command.ts'
import { COMMANDS } from '../../control/commands.ts'
import { ChangeMap } from '../../drivers/log/change-map.ts'
import { Changes } from '../../drivers/log/changes.ts'
import { contextOf } from './fake-group.ts'

const BLOCK = 4096

function loggedDisk(blocks: number): { context: ControlContext; changes: Changes } {
  const map = new ChangeMap(blocks * BLOCK, BLOCK)
  const changes = new Changes('/srv/disk.log', { map, unknown: undefined })
  return {
    changes,
    context: { ...contextOf(), changeLogs: () => [{ exportName: 'disk', log: changes }] },
  }
}

async function run(context: ControlContext, name: string, args: object = {}): Promise<unknown> {
  return await COMMANDS.get(name)?.execute(context, args as Record<string, unknown>)
}

void t.test('a backup is begun, read and ended', async (t) => {
  const { context, changes } = loggedDisk(100)
  changes.mark(5 * BLOCK, 2 * BLOCK)
  const idle = {
    export: 'disk',
    path: '/srv/disk.log',
    block: BLOCK,
    changedBytes: 2 * BLOCK,
    backupBytes: null,
    unknown: null,
  }
  t.same(await run(context, 'query-change-logs'), [idle])
  const begun = { ...idle, changedBytes: 0, backupBytes: 2 * BLOCK }
  t.same(await run(context, 'change-log-begin', { export: 'disk' }), begun)
  t.same(await run(context, 'change-log-read', { export: 'disk' }), {
    ranges: [{ at: 5 * BLOCK, length: 2 * BLOCK }],
    next: null,
  })
  t.same(await run(context, 'change-log-end', { export: 'disk', success: false }), idle)
  await run(context, 'change-log-begin', { export: 'disk' })
  const ended = { ...idle, changedBytes: 0 }
  t.same(await run(context, 'change-log-end', { export: 'disk', success: true }), ended)
})

void t.test('a long list comes in parts', async (t) => {
  const { context, changes } = loggedDisk(50_000)
  for (let block = 1; block < 50_000; block += 2) changes.mark(block * BLOCK, 1)
  await run(context, 'change-log-begin', { export: 'disk' })
  let count = 0
  let replies = 0
  for (let from: number | null = 0; from !== null; replies += 1) {
    const reply = (await run(context, 'change-log-read', { export: 'disk', from })) as {
      ranges: { at: number }[]
      next: number | null
    }
    for (const { at } of reply.ranges) if (at === (2 * count + 1) * BLOCK) count += 1
    from = reply.next
  }
  t.equal(count, 25_000)
  t.equal(replies, 3)
})

void t.test('an export without a log is refused with the ones that have one', async (t) => {
  const { context } = loggedDisk(1)
  await t.rejects(run(context, 'change-log-begin', { export: 'root' }), {
    code: 'NOT_FOUND',
    message: /'root'.*disk/,
  })
  await t.rejects(run(contextOf(), 'change-log-begin', { export: 'root' }), {
    code: 'NOT_FOUND',
    message: /log layer/,
  })
  await t.rejects(run(context, 'change-log-read', { export: 'disk' }), { code: 'NOT_PERMITTED' })
})
