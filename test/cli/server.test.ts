import { existsSync, readdirSync } from 'node:fs'
import { connect, createServer, type AddressInfo } from 'node:net'
import { once } from 'node:events'
import { join } from 'node:path'

import t, { type Test } from 'tap'

import { Server } from '../../cli/server.ts'
import type { ServeSettings } from '../../cli/serve-settings.ts'
import { QmpClient } from '../../control/qmp-client.ts'
import { SILENT } from '../../core/logger.ts'
import type { BlockDevice } from '../../core/block-device.ts'
import { Fault } from '../../core/fault.ts'
import type { Driver } from '../../drivers/driver.ts'
import { log } from '../../drivers/log/log.ts'
import { ram, RamDevice } from '../../drivers/ram.ts'
import { colo } from '../../drivers/replica.ts'
import { socketFolder } from '../control/socket-folder.ts'
import { freePorts } from '../support/scope.ts'

/** A ram disk that remembers whether it is open, and fails to close when its target says so. */
function watched(open: Set<string>): Driver {
  return {
    ...ram,
    name: 'watched',
    open: (stage): Promise<BlockDevice> => {
      open.add(stage.target)
      const device = new RamDevice(1 << 20)
      const close = device.close.bind(device)
      device.close = async () => {
        await close()
        open.delete(stage.target)
        if (stage.target === 'bad') throw new Fault('IO', 'the last flush failed')
      }
      return Promise.resolve(device)
    },
  }
}

function settingsIn(
  folder: string,
  exports: Record<string, string>,
): Omit<ServeSettings, 'logLevel'> {
  return {
    exports: Object.entries(exports).map(([name, pipeline]) => ({
      name,
      pipeline,
      description: '',
      readOnly: name.startsWith('ro'),
    })),
    listen: [{ kind: 'unix', path: join(folder, 'nbd.sock') }],
    control: join(folder, 'control.sock'),
    stateDir: join(folder, 'state'),
    blktap2Dir: undefined,
    insecure: false,
    readOnly: false,
    limits: {},
  }
}

interface Started {
  readonly server: Server
  readonly folder: string
  readonly open: Set<string>
  readonly control: QmpClient
  readonly quitting: Promise<void>
}

async function start(t: Test, exports: Record<string, string>): Promise<Started> {
  const folder = socketFolder(t)
  const open = new Set<string>()
  let onQuit = (): void => undefined
  const quitting = new Promise<void>((resolve) => {
    onQuit = resolve
  })
  const drivers = [watched(open), ram, colo, log]
  const settings = settingsIn(folder, exports)
  const server = await Server.start({ settings, drivers, logger: SILENT, onQuit })
  t.teardown(() => server.close().catch(() => undefined))
  const control = await QmpClient.connect(settings.control)
  t.teardown(() => control.close())
  return { server, folder, open, control, quitting }
}

void t.test('a server shows its exports and groups, and ends with nothing left', async (t) => {
  const { server, folder, open, control } = await start(t, { disk: 'watched:a', rom: 'watched:b' })
  t.match(await control.execute('query-block-exports'), [
    { id: 'disk', size: 1 << 20, readOnly: false, connections: 0 },
    { id: 'rom', size: 1 << 20, readOnly: true, connections: 0 },
  ])
  t.same(await control.execute('replication-status'), { groups: [] })
  t.same(readdirSync(folder).sort(), ['control.sock', 'nbd.sock'])
  await Promise.all([server.close(), server.close()])
  t.equal(open.size, 0)
  t.same(readdirSync(folder), [])
})

void t.test(
  'the changes of an export with a log are told, whatever is above the log',
  async (t) => {
    const { control } = await start(t, {
      disk: `log:${socketFolder(t)}/disk.log|watched:a`,
      plain: 'ram:1M',
    })
    t.match(await control.execute('query-change-logs'), [
      { export: 'disk', block: 65_536, changedBytes: 1 << 20, backupBytes: null, unknown: /new/ },
    ])
    await control.execute('change-log-begin', { export: 'disk' })
    t.same(await control.execute('change-log-read', { export: 'disk' }), {
      ranges: [{ at: 0, length: 1 << 20 }],
      next: null,
    })
    await t.rejects(control.execute('change-log-begin', { export: 'plain' }), { name: 'Fault' })
  },
)

void t.test('quit is answered before the server ends', async (t) => {
  const { server, control, quitting } = await start(t, { disk: 'watched:a' })
  const closed = quitting.then(() => server.close())
  t.same(await control.execute('quit'), {})
  await closed
  t.match(await control.ended, { code: 'LINK_LOST' })
})

void t.test('a replicated export has its group', async (t) => {
  const [port] = await freePorts(1)
  const { control } = await start(t, {
    disk: `colo:127.0.0.1:${port}?role=primary&group=vm1|watched:a`,
  })
  t.match(await control.execute('replication-status', { group: 'vm1' }), {
    groups: [
      { group: 'vm1', mode: 'colo', role: 'primary', disks: [{ name: 'disk', size: 1 << 20 }] },
    ],
  })
  await t.rejects(control.execute('replication-checkpoint', { timeoutMs: 100 }), {
    code: 'REFUSED',
  })
})

void t.test('a start that fails closes what it opened, whatever step fails', async (t) => {
  const other = createServer().listen(0, '127.0.0.1')
  await once(other, 'listening')
  t.teardown(() => other.close())
  const { port } = other.address() as AddressInfo
  const cases: [string, RegExp, (s: ReturnType<typeof settingsIn>) => typeof s][] = [
    [
      'the second export cannot be opened',
      /nonsense/,
      (s) => ({
        ...s,
        exports: [...s.exports, { ...s.exports[0]!, name: 'b', pipeline: 'nonsense:x' }],
      }),
    ],
    [
      'the second address is taken',
      new RegExp(String(port)),
      (s) => ({ ...s, listen: [...s.listen, { kind: 'tcp', host: '127.0.0.1', port }] }),
    ],
    [
      'the control socket has no folder',
      /no\/folder/,
      (s) => ({ ...s, control: `${s.control}/no/folder` }),
    ],
  ]
  for (const [what, message, change] of cases) {
    const folder = socketFolder(t)
    const open = new Set<string>()
    const settings = change(settingsIn(folder, { a: 'watched:a' }))
    const drivers = [watched(open), ram]
    const starting = Server.start({ settings, drivers, logger: SILENT, onQuit: () => undefined })
    await t.rejects(starting, { name: 'Fault', message }, what)
    t.equal(open.size, 0, what)
    t.same(readdirSync(folder), [], what)
  }
})

void t.test(
  'an image that does not close well fails the close, and the others close',
  async (t) => {
    const { server, open, folder } = await start(t, { a: 'watched:bad', b: 'watched:good' })
    await t.rejects(server.close(), { message: /last flush failed/ })
    t.equal(open.size, 0)
    t.notOk(existsSync(join(folder, 'control.sock')))
  },
)

void t.test('clients are counted per export', async (t) => {
  const { folder, control } = await start(t, { disk: 'ram:1M' })
  const client = connect(join(folder, 'nbd.sock'))
  t.teardown(() => client.destroy())
  await once(client, 'data')
  // Client flags: fixed newstyle; then the option EXPORT_NAME (NBD, "Option types").
  const flags = Buffer.from('00000001', 'hex')
  const option = Buffer.from('49484156454f50540000000100000004', 'hex')
  client.write(Buffer.concat([flags, option, Buffer.from('disk')]))
  await once(client, 'data')
  t.match(await control.execute('query-block-exports'), [{ id: 'disk', connections: 1 }])
})
