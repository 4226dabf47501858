/** What a secondary says of its disks when it is asked for checksums. */

import t from 'tap'

import { Fault } from '../../../core/fault.ts'
import type { DiskLayers } from '../../../ramdisk/disk-layers.ts'
import { Answers } from '../../../replication/comparison/answers.ts'
import type { Link } from '../../../replication/environment.ts'
import { frame, type Frame } from '../../../replication/machine/frame.ts'

void t.test('a flush that failed is tried again for the next question', async (t) => {
  let failures = 1
  let flushes = 0
  const disk = {
    readReceived: () => undefined,
    flushImage: () => {
      flushes += 1
      failures -= 1
      if (failures >= 0) throw new Fault('IO', 'the disk is tired')
    },
  }
  let answered: (answer: Frame) => void = () => undefined
  const link = { send: (answer: Frame) => answered(answer) }
  const answers = new Answers(
    link as unknown as Link,
    {
      sums: () => Promise.resolve(Buffer.from('sums')),
    } as unknown as ConstructorParameters<typeof Answers>[1],
  )
  const faults: string[] = []
  const ask = (): Promise<Frame> =>
    new Promise((resolve) => {
      answered = resolve
      const question = frame('compare', { position: 0, extent: 512 })
      answers.answer(question, disk as unknown as DiskLayers, ({ message }) => faults.push(message))
    })
  t.equal((await ask()).payload.length, 0, 'nothing shows the range to be equal')
  t.match(faults, [/tired/])
  t.equal((await ask()).payload.toString(), 'sums')
  await ask()
  t.equal(flushes, 2, 'one that worked does for the link')
})
