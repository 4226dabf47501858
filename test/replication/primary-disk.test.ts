/** When a write of a primary's disk is acknowledged. */

import t from 'tap'

import type { Link } from '../../replication/environment.ts'
import { Forwarding } from '../../replication/forwarding.ts'
import { PUNCH, type Frame } from '../../replication/machine/frame.ts'
import type { PrimaryMachine } from '../../replication/machine/primary.ts'
import { PrimaryDisk, type PrimaryContext } from '../../replication/primary-disk.ts'
import { MemoryDevice } from '../nbd/memory-device.ts'

/** A disk whose link takes a write and says so when it is told to, and whose group freezes. */
function open(): {
  disk: PrimaryDisk
  group: { deposed: boolean; frozen: boolean }
  sent: Frame[]
  handed: () => void
  thaw: () => void
} {
  const group = { deposed: false, frozen: false }
  let handed: (() => void) | undefined
  let thaw: (() => void) | undefined
  const machine = {
    writing: () => undefined,
    written: () => true,
    numberOf: () => 0,
    ack: 'sent',
    get frozen() {
      return group.frozen
    },
    get writeObjection() {
      return group.deposed ? 'this copy was deposed' : undefined
    },
  }
  const sent: Frame[] = []
  const link = {
    sendData: (outgoing: Frame, done: () => void) => {
      sent.push(outgoing)
      handed = done
    },
  }
  const forwarding = new Forwarding(machine as unknown as PrimaryMachine, () => performance.now())
  forwarding.begin(link as unknown as Link)
  const context: PrimaryContext = {
    machine: machine as unknown as PrimaryMachine,
    forwarding,
    diskFailed: () => undefined,
    isGone: () => false,
    ready: () => undefined,
    thawed: () =>
      group.frozen
        ? new Promise((resolve) => {
            thaw = resolve
          })
        : undefined,
  }
  const disk = new PrimaryDisk('disk', new MemoryDevice(8192), context, 0)
  return { disk, group, sent, handed: () => handed?.(), thaw: () => thaw?.() }
}

const turn = (): Promise<void> => new Promise(setImmediate)

void t.test('a forwarded write is acknowledged when the kernel has it', async (t) => {
  const { disk, handed } = open()
  let done = false
  const write = Promise.resolve(disk.write(Buffer.alloc(512), 0, 0)).then(() => (done = true))
  await turn()
  t.equal(done, false)
  handed()
  await write
})

void t.test('what was forwarded before the pair froze is acknowledged when it thaws', async (t) => {
  const { disk, group, handed, thaw } = open()
  let done = false
  const write = Promise.resolve(disk.write(Buffer.alloc(512), 0, 0)).then(() => (done = true))
  group.frozen = true
  handed()
  await turn()
  t.equal(done, false)
  group.frozen = false
  thaw()
  await write
})

void t.test(
  'what was forwarded before the pair froze is refused when this side is deposed meanwhile',
  async (t) => {
    const { disk, group, handed, thaw } = open()
    const write = Promise.resolve(disk.write(Buffer.alloc(512), 0, 0))
    const refused = t.rejects(write, { code: 'NOT_PERMITTED', message: /deposed/ })
    group.frozen = true
    handed()
    await turn()
    group.deposed = true
    group.frozen = false
    thaw()
    await refused
  },
)

void t.test('a disk grows while its group is frozen, and is not acknowledged', async (t) => {
  const { disk, group, sent } = open()
  await disk.extend(4096, 4096)
  group.frozen = true
  await disk.extend(4096, 4096)
  const zeroes = { type: 'zero', position: 4096, extent: 4096, flags: PUNCH } as const
  t.match(sent, [zeroes, zeroes])
  group.deposed = true
  await t.rejects(disk.extend(4096, 4096), { code: 'NOT_PERMITTED', message: /deposed/ })
})

void t.test('zeroes and trims are forwarded as holes, whatever their length', async (t) => {
  const { disk, sent, handed } = open()
  for (const [at, length] of [
    [0, 512],
    [512, 4096],
    [0, 8192],
  ] as const)
    for (const change of ['zero', 'trim'] as const) {
      const changing = disk[change](at, length, 0)
      handed()
      await changing
      t.match(sent.pop(), { type: 'zero', position: at, extent: length, flags: PUNCH })
    }
  t.equal(sent.length, 0, 'each in one frame')
})
