import { existsSync, readdirSync } from 'node:fs'
import { join } from 'node:path'

import t, { type Test } from 'tap'

import { Server } from '../../cli/server.ts'
import { QmpClient } from '../../control/qmp-client.ts'
import { Fault } from '../../core/fault.ts'
import { SILENT } from '../../core/logger.ts'
import { MiB } from '../../core/units.ts'
import type { Driver } from '../../drivers/driver.ts'
import { DRIVERS } from '../../drivers/registry.ts'
import { RamDevice, ram } from '../../drivers/ram.ts'
import { NbdClient } from '../../nbd/client.ts'
import { socketFolder } from '../control/socket-folder.ts'
import { freePorts } from '../support/scope.ts'

/** A disk whose target says how it misbehaves; tells which are open. */
class Odd implements Driver {
  readonly name = 'odd'
  readonly kind = 'backend'
  readonly target = ram.target
  readonly keys = ram.keys
  readonly open: Driver['open']
  readonly isOpen = new Set<string>()

  constructor() {
    this.open = ({ target }) => {
      this.isOpen.add(target)
      const device = new RamDevice(MiB)
      device.resize = () => Promise.reject(new Fault('NO_SPACE', 'the disk is full'))
      device.close = () => {
        this.isOpen.delete(target)
        return Promise.resolve()
      }
      return Promise.resolve(device)
    }
  }
}

interface Started {
  readonly server: Server
  readonly folder: string
  readonly odd: Odd
  readonly control: QmpClient
  readonly attach: (name: string) => Promise<NbdClient>
  /** Name, size and number of clients of each export. */
  readonly exports: () => Promise<[string, number, number][]>
}

async function start(
  t: Test,
  exports: Record<string, string>,
  more: Partial<Parameters<typeof Server.start>[0]['settings']> = {},
): Promise<Started> {
  const folder = socketFolder(t)
  const odd = new Odd()
  const path = join(folder, 'nbd.sock')
  const server = await Server.start({
    settings: {
      exports: Object.entries(exports).map(([name, pipeline]) => ({
        ...{ name, pipeline, description: '', readOnly: false },
      })),
      readOnly: false,
      listen: [{ kind: 'unix', path }],
      control: join(folder, 'control.sock'),
      stateDir: join(folder, 'state'),
      blktap2Dir: undefined,
      insecure: false,
      limits: { lingerMs: 100, closeMs: 5000 },
      ...more,
    },
    drivers: [...DRIVERS, odd],
    logger: SILENT,
    onQuit: () => undefined,
  })
  t.teardown(() => server.close())
  const control = await QmpClient.connect(join(folder, 'control.sock'))
  t.teardown(() => control.close())
  return {
    ...{ server, folder, odd, control },
    attach: async (exportName) => {
      const client = await NbdClient.connect({ address: { kind: 'unix', path }, exportName })
      t.teardown(() => client.abandon())
      return client
    },
    exports: async () => {
      const all = (await control.execute('query-block-exports')) as {
        id: string
        size: number
        connections: number
      }[]
      return all.map(({ id, size, connections }) => [id, size, connections])
    },
  }
}

void t.test('an export that is added is served, and one that is removed is not', async (t) => {
  const { control, attach, exports } = await start(t, { a: 'ram:1M' })
  const added = { name: 'b', pipeline: 'valve:all?bytes=100M|ram:2M', description: 'the second' }
  t.match(await control.execute('export-add', added), { id: 'b', size: 2 * MiB, readOnly: false })
  const client = await attach('b')
  await client.write(Buffer.alloc(4096, 0x42), 0)
  t.same(await exports(), [
    ['a', MiB, 0],
    ['b', 2 * MiB, 1],
  ])
  await t.rejects(control.execute('export-remove', { name: 'b' }), { message: /a client uses it/ })
  t.same((await exports()).length, 2, 'a refusal changes nothing')
  const block = Buffer.alloc(4096)
  await client.read(block, 0)
  t.equal(block[0], 0x42, 'nor does it disturb the client')
  t.same(await control.execute('export-remove', { name: 'b', force: true }), {})
  await t.rejects(client.read(block, 0), 'its clients are gone')
  await t.rejects(attach('b'))
  t.same(await exports(), [['a', MiB, 0]])
})

void t.test('requests in flight end well when their export is removed by force', async (t) => {
  const { control, attach } = await start(t, { a: 'fault:write?delay=50|ram:1M' })
  const client = await attach('a')
  const writes = Array.from({ length: 8 }, () => client.write(Buffer.alloc(MiB / 4, 1), 0))
  const [removed, ...outcomes] = await Promise.allSettled([
    control.execute('export-remove', { name: 'a', force: true }),
    ...writes,
  ])
  t.equal(removed.status, 'fulfilled')
  for (const outcome of outcomes)
    if (outcome.status === 'rejected')
      t.match(outcome.reason, { code: /SHUTDOWN|LINK_LOST/ }, 'never a wrong answer')
})

void t.test('an export that cannot be added leaves everything as it was', async (t) => {
  const { control, exports, odd } = await start(t, { a: 'ram:1M' })
  const cases: [object, RegExp][] = [
    [{ name: 'a', pipeline: 'ram:1M' }, /is named "a" already.*choose another name/],
    [{ name: '', pipeline: 'ram:1M' }, /must not be empty/],
    [{ name: 'b\n', pipeline: 'ram:1M' }, /control characters/],
    [{ name: 'b', pipeline: 'ram:1M', description: 'x'.repeat(5000) }, /no text of at most/],
    [{ name: 'b', pipeline: 'nonsense:x' }, /nonsense/],
    [{ name: 'b', pipeline: 'cache:1|odd:x' }, /a cache of 1 B/],
    [{ name: 'b', pipeline: 'odd:x', readOnly: 'yes' }, /expected true or false/],
    [{ name: 'b', pipeline: 'odd:x', allow: 'cn:a' }, /expected an array of strings/],
    [{ name: 'b', pipeline: 'odd:x', allow: [1] }, /expected an array of strings/],
    [{ name: 'b', pipeline: 'odd:x', allow: [] }, /allows nobody/],
    [{ name: 'b', pipeline: 'odd:x', allow: ['a'] }, /not a client: "a"/],
    [{ name: 'b', pipeline: 'odd:x', allow: ['cn:a'] }, /no client .* could prove itself/],
    [{ name: 'b', pipeline: 'colo:127.0.0.1:0?role=secondary|odd:x' }, /port 0/],
  ]
  for (const [args, message] of cases)
    await t.rejects(control.execute('export-add', { ...args }), { message }, JSON.stringify(args))
  t.same(await exports(), [['a', MiB, 0]])
  t.same([...odd.isOpen], [])
  t.same(await control.execute('replication-status'), { groups: [] })
  await control.execute('export-add', { name: 'b', pipeline: 'odd:x' })
  t.same([...odd.isOpen], ['x'], 'and the same name can be added rightly')
})

void t.test('a server for reading adds exports for reading', async (t) => {
  const { control, attach } = await start(t, { a: 'ram:1M' }, { readOnly: true })
  t.match(await control.execute('export-add', { name: 'b', pipeline: 'ram:1M' }), {
    readOnly: true,
  })
  const client = await attach('b')
  await t.rejects(client.write(Buffer.alloc(512), 0))
})

void t.test('clients that connect after a resize see the new size', async (t) => {
  const path = join(socketFolder(t), 'changes')
  const pipeline = `cache:2M|valve:all?bytes=1G|log:${path}|fault:read?first=1000000|ram:1M`
  const { control, attach, exports } = await start(t, { a: pipeline })
  const before = await attach('a')
  await before.write(Buffer.alloc(4096, 1), MiB - 4096)
  t.same(await control.execute('block_resize', { device: 'a', size: 3 * MiB }), {})
  const after = await attach('a')
  t.equal(before.info.size, MiB)
  t.equal(after.info.size, 3 * MiB)
  const block = Buffer.alloc(4096, 9)
  await after.read(block, MiB)
  t.same(block, Buffer.alloc(4096), 'what it gained is zeroes')
  await after.write(Buffer.alloc(4096, 2), 3 * MiB - 4096)
  await before.read(block, MiB - 4096)
  t.equal(block[0], 1)
  await t.rejects(control.execute('block_resize', { device: 'a', size: MiB }), {
    message: /cannot become smaller: 2 clients use it/,
  })
  t.same(await exports(), [['a', 3 * MiB, 2]])
})

void t.test('a disk becomes smaller while nobody uses it', async (t) => {
  const { control, attach, exports } = await start(t, { a: 'ram:2M' })
  await control.execute('block_resize', { 'node-name': 'a', size: MiB })
  t.same(await exports(), [['a', MiB, 0]])
  t.equal((await attach('a')).info.size, MiB)
})

void t.test('a resize that is refused or fails leaves the size', async (t) => {
  const { control, exports, odd } = await start(t, { a: 'odd:x', ro: 'ram:1M' })
  const cases: [object, RegExp][] = [
    [{ device: 'a', size: 2 * MiB }, /full/],
    [{ device: 'b', size: MiB }, /no export is named "b".*a, ro/],
    [{ device: 'a', size: 0 }, /'size' is 0/],
    [{ size: MiB }, /device or node-name/],
    [{ device: 'a', 'node-name': 'a', size: MiB / 2 }, /device or node-name/],
  ]
  for (const [args, message] of cases)
    await t.rejects(control.execute('block_resize', { ...args }), { message }, JSON.stringify(args))
  t.same(await exports(), [
    ['a', MiB, 0],
    ['ro', MiB, 0],
  ])
  t.same([...odd.isOpen], ['x'])
})

void t.test('a replication group comes with its first disk and goes with it', async (t) => {
  const [port] = await freePorts(1)
  const folder = socketFolder(t)
  const doors = { blktap2Dir: join(folder, 'doors') }
  const { control } = await start(t, { a: 'ram:1M' }, doors)
  const pipeline = `colo:127.0.0.1:${port}?role=secondary&group=vm1|ram:1M`
  for (let round = 0; round < 2; round += 1) {
    await control.execute('export-add', { name: 'vm', pipeline })
    t.match(await control.execute('replication-status'), {
      groups: [{ group: 'vm1', role: 'secondary', disks: [{ name: 'vm', size: MiB }] }],
    })
    t.same(readdirSync(doors.blktap2Dir), [`colo_127.0.0.1_${port}`])
    await control.execute('export-remove', { name: 'vm' })
    t.same(await control.execute('replication-status'), { groups: [] })
    t.same(readdirSync(doors.blktap2Dir), [], 'its checkpoint socket goes with it')
  }
})

void t.test('one disk of several leaves its group, and those of the others stay', async (t) => {
  const [port] = await freePorts(1)
  const pipeline = `colo:127.0.0.1:${port}?role=primary&group=vm1|ram:1M`
  const { control, attach, exports } = await start(t, { a: pipeline, b: pipeline })
  const [leaves, stays] = [await attach('a'), await attach('b')]
  await t.rejects(control.execute('export-remove', { name: 'a' }), { message: /a client uses it/ })
  await leaves.write(Buffer.alloc(4096, 1), 0)
  await control.execute('export-remove', { name: 'a', force: true })
  await stays.write(Buffer.alloc(4096, 1), 0)
  t.same(await exports(), [['b', MiB, 1]])
  const { groups } = (await control.execute('replication-status')) as {
    groups: { disks: { name: string }[] }[]
  }
  t.same(
    groups.map(({ disks }) => disks.map(({ name }) => name)),
    [['b']],
  )
})

void t.test('changes that come together are made one after the other', async (t) => {
  const { control, exports } = await start(t, { a: 'ram:1M' })
  const outcomes = await Promise.allSettled([
    control.execute('export-add', { name: 'b', pipeline: 'ram:1M' }),
    control.execute('export-add', { name: 'b', pipeline: 'ram:2M' }),
    control.execute('export-remove', { name: 'b' }),
    control.execute('block_resize', { device: 'a', size: 2 * MiB }),
    control.execute('export-add', { name: 'b', pipeline: 'ram:4M' }),
  ])
  t.same(
    outcomes.map(({ status }) => status),
    ['fulfilled', 'rejected', 'fulfilled', 'fulfilled', 'fulfilled'],
  )
  t.same(await exports(), [
    ['a', 2 * MiB, 0],
    ['b', 4 * MiB, 0],
  ])
})

void t.test(
  'a server that is closed changes nothing any more, and closes what was added',
  async (t) => {
    const { server, control, odd, folder } = await start(t, { a: 'ram:1M' })
    await control.execute('export-add', { name: 'b', pipeline: 'odd:x' })
    const closing = server.close()
    const late = { name: 'c', pipeline: 'odd:y', description: '', readOnly: false }
    await t.rejects(server.addExport(late), { code: 'SHUTDOWN' })
    await closing
    t.same([...odd.isOpen], [])
    t.notOk(existsSync(join(folder, 'control.sock')))
  },
)
