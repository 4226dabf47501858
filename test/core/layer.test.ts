import t from 'tap'

import { FUA, NO_HOLE } from '../../core/block-device.ts'
import { Layer } from '../../core/layer.ts'
import { RecordingDevice } from '../drivers/recording-device.ts'

class Nothing extends Layer {}

void t.test('a layer that changes nothing hands everything to the disk below', async (t) => {
  const below = new RecordingDevice({ size: 8192 })
  let toldToStop = 0
  Object.assign(below, { stopWaiting: () => (toldToStop += 1) })
  const layer = new Nothing(below)
  t.equal(layer.geometry, below.geometry)
  t.equal(layer.can, below.can)
  t.equal(layer.changeLog, undefined)
  t.equal(layer.write(Buffer.from('abc'), 10, FUA), undefined, 'at once, as below')
  const into = Buffer.alloc(3)
  await layer.read(into, 10)
  t.equal(into.toString(), 'abc')
  await layer.zero(0, 512, NO_HOLE)
  await layer.trim(512, 512, 0)
  await layer.flush()
  t.same(await layer.status(0, 100), [{ at: 0, length: 100, kind: 'data' }])
  await layer.resize(4096)
  layer.stopWaiting()
  await layer.close()
  t.strictSame(below.calls, [
    'write 10+3 fua',
    'read 10+3',
    'zero 0+512 no-hole',
    'trim 512+512',
    'flush',
    'status 0+100',
    'resize 4096',
    'close',
  ])
  t.equal(toldToStop, 1)
})

void t.test('a disk below that never waits need not know about the end of waiting', (t) => {
  t.doesNotThrow(() => new Nothing(new RecordingDevice()).stopWaiting())
  t.end()
})
