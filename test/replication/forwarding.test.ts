/** When the writes of a primary's guest complete: a disk of memory, a machine, and a link that the test is the other end of. */

import t from 'tap'

import { isPromise, type MaybePromise } from '../../core/maybe-promise.ts'
import type { Link } from '../../replication/environment.ts'
import { Forwarding } from '../../replication/forwarding.ts'
import type { Ack } from '../../replication/group.ts'
import type { Frame } from '../../replication/machine/frame.ts'
import type { PrimaryInput } from '../../replication/machine/primary-io.ts'
import { PrimaryDisk } from '../../replication/primary-disk.ts'
import { WriteGate } from '../../replication/write-gate.ts'
import { Fault } from '../../core/fault.ts'
import { MemoryDevice } from '../nbd/memory-device.ts'
import { down, hello, linkUp, newMachine, ready, resynced } from './machine/primary-stories.ts'

const SIZE = 4096 * 4
const ABLE = hello({ features: ['acknowledge'], durable: true, disks: [{ name: 'a', size: SIZE }] })
const SECTOR = Buffer.alloc(512, 7)

class FakeLink implements Link {
  readonly peer = 'secondary'
  closed = false
  readonly sent: Frame[] = []
  send(frame: Frame): void {
    this.sent.push(frame)
  }
  sendData(frame: Frame, handed: () => void): void {
    this.sent.push(frame)
    handed()
  }
  pause(): void {}
  resume(): void {}
  close(): void {
    this.closed = true
  }
}

function primary(ack: Ack, onLinkLoss: 'continue' | 'freeze') {
  const machine = newMachine({}, { ack, onLinkLoss, disks: [{ name: 'a', size: SIZE }] })
  const gate = new WriteGate(machine, { fork: () => undefined, persist: () => undefined })
  const forwarding = new Forwarding(machine, () => performance.now())
  const disk = new PrimaryDisk(
    'a',
    new MemoryDevice(SIZE),
    {
      ...{ machine, forwarding, diskFailed: () => undefined, isGone: () => false },
      ready: () => gate.ready(),
      thawed: () => gate.thawed(),
    },
    0,
  )
  const step = (...inputs: PrimaryInput[]): void => {
    for (const input of inputs) machine.step(input)
    gate.open()
    forwarding.settle()
  }
  const connect = (...inputs: PrimaryInput[]): void => {
    forwarding.begin(new FakeLink())
    step(linkUp, ABLE, ready, ...inputs)
  }
  const lose = (): void => {
    forwarding.end()
    step(down('it broke'))
  }
  return { machine, gate, forwarding, disk, step, connect, lose }
}

/** Whether a request has been answered, once and how. */
function watch(request: MaybePromise<void>): { answers: string[] } {
  const answers: string[] = []
  if (isPromise(request))
    request.then(
      () => answers.push('done'),
      (error: unknown) => answers.push(error instanceof Fault ? error.code : 'bug'),
    )
  else answers.push('done')
  return { answers }
}
const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve))

void t.test(
  'a write completes with the acknowledgement that is asked for, and a flush with it',
  async (t) => {
    for (const [ack, kind] of [
      ['received', 'received'],
      ['durable', 'stored'],
    ] as const) {
      const { connect, disk, forwarding } = primary(ack, 'continue')
      connect()
      const write = watch(disk.write(SECTOR, 0, 0))
      const flush = watch(disk.flush())
      await turn()
      t.same(write.answers, [])
      t.same(flush.answers, ack === 'durable' ? [] : ['done'])
      t.equal(forwarding.acknowledge(kind, 1), undefined)
      await turn()
      t.same([write.answers, flush.answers], [['done'], ['done']])
      t.same(watch(disk.flush()).answers, ['done'], 'nothing is left to wait for')
    }
  },
)

void t.test('with ack=sent neither waits', async (t) => {
  const { connect, disk } = primary('sent', 'freeze')
  connect()
  const write = watch(disk.write(SECTOR, 0, 0))
  await turn()
  t.same([write.answers, watch(disk.flush()).answers], [['done'], ['done']])
})

void t.test(
  'on-link-loss=continue: a lost link lets waiting writes complete once, as dirty',
  async (t) => {
    const { connect, disk, lose, machine } = primary('durable', 'continue')
    connect()
    const write = watch(disk.write(SECTOR, 0, 0))
    await turn()
    t.same(write.answers, [])
    lose()
    await turn()
    t.same([write.answers, machine.dirtyBytes(0)], [['done'], 4096])
    connect()
    await turn()
    t.same(write.answers, ['done'])
  },
)

void t.test(
  'on-link-loss=freeze: they complete once, when everything was sent again and acknowledged',
  async (t) => {
    const { connect, disk, lose, forwarding, step } = primary('durable', 'freeze')
    connect()
    const write = watch(disk.write(SECTOR, 0, 0))
    lose()
    await turn()
    t.same(write.answers, [])
    connect()
    await turn()
    t.same(write.answers, [], 'the resync has not sent it')
    await disk.resend(0, Buffer.alloc(4096), () => true)
    step(resynced(2))
    await turn()
    t.same(write.answers, [], 'it was not acknowledged')
    forwarding.acknowledge('stored', 1)
    await turn()
    t.same(write.answers, ['done'])
  },
)

void t.test('on-link-loss=freeze: an operator lets them go', async (t) => {
  const { connect, disk, lose, step } = primary('received', 'freeze')
  connect()
  const write = watch(disk.write(SECTOR, 0, 0))
  lose()
  await turn()
  t.same(write.answers, [])
  step({ type: 'configure', onLinkLoss: 'continue', intervalMs: undefined, ack: undefined })
  await turn()
  t.same(write.answers, ['done'])
})

void t.test('what waits when the role ends is refused where it may not complete', async (t) => {
  const { connect, disk, lose, gate, forwarding } = primary('received', 'freeze')
  connect()
  const write = watch(disk.write(SECTOR, 0, 0))
  lose()
  gate.end(new Fault('SHUTDOWN', 'the end'))
  forwarding.finish()
  await turn()
  t.same(write.answers, ['SHUTDOWN'])
})

void t.test(
  '13: a write whose primary is deposed before the acknowledgement is not acknowledged',
  async (t) => {
    const { connect, disk, forwarding, step } = primary('received', 'continue')
    connect()
    const write = watch(disk.write(SECTOR, 0, 0))
    forwarding.end()
    step({ type: 'refused', nowMs: 0, refusal: { code: 'deposed', reason: 'gone', term: 9 } })
    await turn()
    t.same(write.answers, ['NOT_PERMITTED'])
  },
)

void t.test(
  'a planned exchange of roles waits until the link in use has acknowledged',
  async (t) => {
    const { connect, disk, forwarding, lose } = primary('received', 'freeze')
    connect()
    t.equal(forwarding.quiet(), undefined)
    void watch(disk.write(SECTOR, 0, 0))
    const quiet = watch(forwarding.quiet())
    await turn()
    t.same(quiet.answers, [])
    forwarding.acknowledge('received', 1)
    await turn()
    t.same(quiet.answers, ['done'])
    void watch(disk.write(SECTOR, 0, 0))
    const lost = watch(forwarding.quiet())
    lose()
    await turn()
    t.same(lost.answers, ['done'], 'and not for one that is gone')
  },
)
