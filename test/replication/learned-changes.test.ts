/** What a primary makes of a secondary that tells what it changed by itself; the test is that secondary. */

import t, { type Test } from 'tap'

import { Fault } from '../../core/fault.ts'
import { KiB } from '../../core/units.ts'
import type { LinkHandlers } from '../../replication/environment.ts'
import { frame, type Frame } from '../../replication/machine/frame.ts'
import { encodeHello, FEATURES, type Hello } from '../../replication/machine/handshake.ts'
import { memoryRegions } from '../../replication/regions/region-store.ts'
import { MemoryDevice } from '../nbd/memory-device.ts'
import { isProtected, SIZE, startSide, type Side } from './comparison/one-process-pair.ts'
import { FakeLink } from './fake-link.ts'
import { SECONDARY } from './machine/hellos.ts'

const REGION = 64 * KiB

const GREETING: Hello = {
  ...SECONDARY,
  ...{ generation: null, checkpoint: 0, announced: 0, features: FEATURES },
  disks: ['a', 'b'].map((name) => ({ name, size: SIZE })),
}

interface Primary extends Side {
  /** Whether its maps on disk can be written. */
  readonly maps: { fail: boolean }
  /** The other side can be reached from now on. */
  readonly connect: () => { link: FakeLink; handlers: LinkHandlers }
}

/** A primary with the disks a and b, which the other side has as well. */
async function start(t: Test): Promise<Primary> {
  const maps = { fail: false }
  let connected: ((open: (handlers: LinkHandlers) => FakeLink) => void) | undefined
  const side = await startSide('primary', {
    environment: {
      openRegions: (_group, _disk, size) =>
        Promise.resolve({
          ...memoryRegions(size, REGION),
          save: () =>
            maps.fail
              ? Promise.reject(new Fault('NO_SPACE', 'no space for the map'))
              : Promise.resolve(),
        }),
    },
    dial: (succeeded) => {
      connected = succeeded
      return () => undefined
    },
  })
  t.teardown(() => {
    maps.fail = false
    return side.group.close()
  })
  side.group.attach('b', new MemoryDevice(SIZE))
  await side.group.admit()
  return {
    ...{ ...side, maps },
    connect: () => {
      const link = new FakeLink()
      let handlers: LinkHandlers | undefined
      connected!((given) => {
        handlers = given
        return link
      })
      return { link, handlers: handlers! }
    },
  }
}

const hello = frame('hello', { payload: encodeHello(GREETING) })
const dirty = (disk: number, position: number): Frame =>
  frame('dirty', { disk, position, extent: 4096 })

void t.test(
  'what is told of a disk that was removed meanwhile is of no concern, and the link goes on',
  async (t) => {
    const { group, connect, next } = await start(t)
    const { link, handlers } = connect()
    handlers.frame(hello)
    await group.dismiss('a')
    t.equal(link.sent.at(-1)?.type, 'withdraw')
    handlers.frame(dirty(0, 0))
    t.equal(link.closed, false)
    const healed = next(isProtected)
    handlers.frame(frame('ready'))
    await healed
    t.same(
      group.status().disks.map(({ name }) => name),
      ['b'],
    )
  },
)

void t.test('what is told of a disk that is here is sent, and marked on disk before', async (t) => {
  const { group, connect, maps, next } = await start(t)
  const { link, handlers } = connect()
  handlers.frame(hello)
  maps.fail = true
  handlers.frame(dirty(0, REGION))
  t.equal(group.status().disks[0]?.dirtyBytes, 4096)
  handlers.frame(frame('ready'))
  const failed = next(({ event }) => event === 'REPLICATION_LINK')
  t.match((await failed).data, { up: false, reason: /resync stopped: .*no space for the map/ })
  t.notOk(link.sent.some(({ type }) => type === 'write' || type === 'zero'))
  maps.fail = false
  const again = connect()
  again.handlers.frame(hello)
  again.handlers.frame(dirty(0, REGION))
  const healed = next(isProtected)
  again.handlers.frame(frame('ready'))
  await healed
  const sent = again.link.sent.filter(({ type, disk }) => type === 'zero' && disk === 0)
  t.match(sent, [{ position: REGION, extent: 4096 }])
})

void t.test('a map that cannot be written when the link is lost ends nothing else', async (t) => {
  const { group, connect, maps } = await start(t)
  const { link, handlers } = connect()
  handlers.frame(hello)
  maps.fail = true
  handlers.frame(dirty(0, 0))
  link.close()
  handlers.closed('the cable was pulled')
  // A promise whose failure nobody has heard of would have ended the process by then.
  await new Promise((resolve) => setImmediate(resolve))
  t.equal(group.status().reason, 'the cable was pulled')
})

void t.test('what is told of a disk that the link never had ends it', async (t) => {
  const { connect } = await start(t)
  const refused = { code: 'PROTOCOL', message: /disk 7, which is not on the link/ }
  const { handlers } = connect()
  t.throws(() => handlers.frame(dirty(7, 0)), refused, 'before both have greeted each other')
  handlers.frame(hello)
  t.throws(() => handlers.frame(dirty(7, 0)), refused)
  t.throws(() => handlers.frame(dirty(0, SIZE)), { code: 'PROTOCOL', message: /beyond a disk/ })
})
