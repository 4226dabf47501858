/** Settings of a replicated disk that make no sense together. */

import t from 'tap'

import { SILENT } from '../../core/logger.ts'
import { parseStages } from '../../drivers/pipeline.ts'
import { ReplicationRegistry } from '../../drivers/replication-registry.ts'
import { MemoryDevice } from '../nbd/memory-device.ts'

const SIZE = 1 << 20

void t.test(
  'settings that contradict each other are refused before anything is made',
  async (t) => {
    const cases: readonly (readonly [settings: string, message: RegExp])[] = [
      ['ack=durable&durability=memory', /ack=durable goes not with durability=memory/],
      ['ack=received&wire=blktap2', /ack= goes not with wire=blktap2/],
      ['ack=soon', /ack/],
      ['heartbeat=500&timeout=600', /less than two heartbeats/],
    ]
    for (const [settings, message] of cases) {
      const registry = new ReplicationRegistry({
        logger: SILENT,
        onEvent: () => undefined,
        stateDir: t.testdir(),
        insecure: false,
      })
      const [stage] = parseStages(`colo:127.0.0.1:9?role=primary&${settings}`)
      const attached = registry.attach(stage!, 'colo', 'disk', new MemoryDevice(SIZE))
      await t.rejects(attached, { code: 'INVALID', message }, settings)
      t.same(registry.groups, [])
    }
  },
)
