import t from 'tap'

import { Fault } from '../../core/fault.ts'
import { deviceBelow, type Driver } from '../../drivers/driver.ts'
import { Guard } from '../../drivers/guard.ts'
import { openPipeline } from '../../drivers/open.ts'
import { ram } from '../../drivers/ram.ts'
import { openContext } from './open-context.ts'
import { RecordingDevice } from './recording-device.ts'

/** Drivers that write down what happens to them. */
function tracing(): { drivers: Driver[]; events: string[] } {
  const events: string[] = []
  const backend: Driver = {
    name: 'disk',
    kind: 'backend',
    target: 'a name',
    keys: {},
    open: (stage, below) => {
      t.equal(below, undefined, 'nothing is below a backend')
      events.push(`open ${stage.target}`)
      const device = new RecordingDevice()
      device.close = () => {
        events.push(`close ${stage.target}`)
        return Promise.resolve()
      }
      return Promise.resolve(device)
    },
  }
  const layer: Driver = {
    name: 'layer',
    kind: 'layer',
    target: 'a name',
    keys: { fail: { meaning: 'fail to open' } },
    open: (stage, below) => {
      const under = deviceBelow(below)
      events.push(`open ${stage.target}`)
      if (stage.settings.has('fail')) return Promise.reject(new Fault('IO', 'as asked'))
      const device = new RecordingDevice()
      device.close = () => {
        events.push(`close ${stage.target}`)
        return under.close()
      }
      return Promise.resolve(device)
    },
  }
  return { drivers: [backend, layer], events }
}

void t.test('stages open bottom-up and close top-down', async (t) => {
  const { drivers, events } = tracing()
  const { device: disk } = await openPipeline('layer:a|layer:b|disk:c', drivers, openContext())
  t.ok(disk instanceof Guard)
  await disk.close()
  await disk.close()
  t.strictSame(events, ['open c', 'open b', 'open a', 'close a', 'close b', 'close c'])
})

void t.test('a stage that fails to open closes what was opened below it', async (t) => {
  const { drivers, events } = tracing()
  const opening = openPipeline('layer:a|layer:b?fail|layer:c|disk:d', drivers, openContext())
  await t.rejects(opening, { name: 'Fault', message: 'as asked' })
  t.strictSame(events, ['open d', 'open c', 'open b', 'close c', 'close d'])
})

void t.test('a pipeline that is wrong opens nothing', async (t) => {
  const { drivers, events } = tracing()
  await t.rejects(openPipeline('layer:a', drivers, openContext()), { code: 'INVALID' })
  t.strictSame(events, [])
})

void t.test('an export that is read-only refuses writes whatever is below', async (t) => {
  const { device: disk } = await openPipeline('ram:1M', [ram], openContext(true))
  t.throws(() => disk.write(Buffer.alloc(1), 0, 0), { code: 'NOT_PERMITTED' })
  await disk.close()
})
