/** The groups of a process: settings that make no sense together, and groups that know nothing of each other. */

import t, { type Test } from 'tap'

import type { BlockDevice } from '../../core/block-device.ts'
import { SILENT } from '../../core/logger.ts'
import { parseStages } from '../../drivers/pipeline.ts'
import { ReplicationRegistry } from '../../drivers/replication-registry.ts'
import type { ReplicationGroup } from '../../replication/group.ts'
import { MemoryDevice } from '../nbd/memory-device.ts'
import { freePorts, tempDirectory } from '../support/scope.ts'

const SIZE = 1 << 20

/** What a process has: its groups, and the disk of each. */
class Process {
  readonly #registry: ReplicationRegistry
  readonly #disks = new Map<string, BlockDevice>()
  #watchers: (() => void)[] = []

  private constructor(stateDir: string) {
    this.#registry = new ReplicationRegistry({
      ...{ logger: SILENT, stateDir, insecure: false },
      onEvent: () => {
        for (const look of this.#watchers.splice(0)) look()
      },
    })
  }

  static async start(
    t: Test,
    role: string,
    groups: readonly string[],
    port: number,
  ): Promise<Process> {
    const started = new Process(await tempDirectory(t))
    const registry = started.#registry
    t.teardown(async () => {
      registry.stop()
      for (const disk of started.#disks.values()) await disk.close()
      await registry.close()
    })
    for (const group of groups) {
      const settings = `role=${role}&group=${group}&durability=memory&initial=identical`
      const [stage] = parseStages(`remus:127.0.0.1:${port}?${settings}`)
      const disk = await registry.attach(stage!, 'remus', group, new MemoryDevice(SIZE))
      started.#disks.set(group, disk)
    }
    await registry.start()
    return started
  }

  get groups(): string[] {
    return this.#registry.groups.map(({ name }) => name)
  }

  group(name: string): ReplicationGroup {
    return this.#registry.groups.find((group) => group.name === name)!
  }

  disk(group: string): BlockDevice {
    return this.#disks.get(group)!
  }

  async until(group: string, wanted: string): Promise<void> {
    while (this.group(group).status().protection !== wanted)
      await new Promise<void>((resolve) => this.#watchers.push(resolve))
  }
}

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

void t.test('each group of a process has a state of its own', async (t) => {
  const names = ['one', 'other']
  const [port] = await freePorts(1)
  const secondary = await Process.start(t, 'secondary', names, port!)
  const primary = await Process.start(t, 'primary', names, port!)
  for (const process of [primary, secondary]) t.same(process.groups, names)
  for (const [index, name] of names.entries()) {
    await primary.until(name, 'protected')
    await primary.disk(name).write(Buffer.alloc(4096, 1 + index), 0, 0)
  }
  await primary.group('one').checkpoint(undefined)
  t.match(secondary.group('one').status(), { role: 'secondary', checkpoint: 1 })
  t.match(secondary.group('other').status(), { role: 'secondary', checkpoint: 0 })
  await secondary.group('one').promote(true)
  await primary.until('one', 'unprotected')
  t.match(secondary.group('one').status(), { role: 'active' })
  t.match(secondary.group('other').status(), { role: 'secondary' })
  t.match(primary.group('other').status(), { protection: 'protected' })
  await primary.group('other').checkpoint(undefined)
  await secondary.group('other').promote(true)
  for (const [index, name] of names.entries()) {
    const found = Buffer.alloc(4096)
    await secondary.disk(name).read(found, 0)
    t.ok(found.equals(Buffer.alloc(4096, 1 + index)), `${name} has what was written to it`)
  }
})
