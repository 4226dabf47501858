/** `colotap:dirty`, as a backup program sees it. */

import t from 'tap'

import { mustRun } from '../support/child.ts'
import { startPair } from '../support/replica-pair.ts'

const MIB = 1024 * 1024
const SIZE = 64 * MIB

void t.test(
  'the blocks changed since the last checkpoint are told, until the next one',
  async (t) => {
    const { primary, secondary } = await startPair(t, { mode: 'colo', disks: { disk: SIZE } })
    const uri = primary.server.uri('disk')
    const dirty = async (): Promise<unknown> =>
      JSON.parse(await mustRun(t, 'nbdinfo', ['--json', '--map=colotap:dirty', uri]))
    const clean = [{ offset: 0, length: SIZE, type: 0 }]
    await primary.qmp.execute('replication-checkpoint')
    t.match(await dirty(), clean)

    const commands = ['write -P 1 8M 1M', `write -P 2 ${SIZE - 512} 512`, 'write -z 20M 8k']
    await mustRun(t, 'qemu-io', [
      ...['-f', 'raw', ...commands.flatMap((command) => ['-c', command])],
      uri,
    ])
    t.match(await dirty(), [
      { offset: 0, length: 8 * MIB, type: 0 },
      { offset: 8 * MIB, length: 1 * MIB, type: 1 },
      { offset: 9 * MIB, length: 11 * MIB, type: 0 },
      { offset: 20 * MIB, length: 8192, type: 1 },
      { offset: 20 * MIB + 8192, length: SIZE - 20 * MIB - 8192 - 4096, type: 0 },
      { offset: SIZE - 4096, length: 4096, type: 1 },
    ])
    await primary.qmp.execute('replication-checkpoint')
    t.match(await dirty(), clean)

    const offered = async (host: string): Promise<unknown> =>
      JSON.parse(await mustRun(t, 'nbdinfo', ['--json', host]))
    t.match(await offered(uri), { exports: [{ contexts: ['base:allocation', 'colotap:dirty'] }] })
    const uriOfOther = secondary.server.uri('disk')
    t.match(
      JSON.parse(
        await mustRun(t, 'nbdinfo', ['--json', '--map=colotap:dirty', uriOfOther]),
      ) as unknown,
      [{ offset: 0, length: SIZE, type: 1 }],
      'a secondary does not know, and says so',
    )
  },
)
