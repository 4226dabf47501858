/** A primary whose replication is switched off while a connection that was made before waits to be used. */

import t from 'tap'

import { isProtected, startPair } from './comparison/one-process-pair.ts'
import { MemorySegments } from './journal/memory-segments.ts'

const SWITCHED_OFF = /switched off here/

void t.test(
  'what waits for a new line to be remembered is not used once replication is switched off',
  async (t) => {
    const store = new MemorySegments()
    const pair = await startPair({
      primary: { durability: 'journal' },
      environment: { openSegments: () => Promise.resolve(store) },
    })
    const { primary, sent } = pair
    const hellos = (): number => sent.filter(({ type }) => type === 'hello').length
    const before = hellos()

    primary.group.setReplicating(false)
    let open = (): void => undefined
    store.gate = new Promise((resolve) => (open = resolve))
    // It begins a line of its own, which the journal has to have first, before a secondary that is connected meanwhile is greeted.
    const written = primary.disk.write(Buffer.alloc(4096, 1), 0, 0)
    primary.group.setReplicating(true)
    primary.group.setReplicating(false)
    store.gate = undefined
    open()
    await written
    // A hello that was sent is on the wire after this turn.
    await new Promise(setImmediate)
    t.equal(hellos(), before, 'nobody is greeted')
    t.match(primary.group.status(), { protection: 'unprotected', reason: SWITCHED_OFF })
    await t.rejects(primary.group.checkpoint(), SWITCHED_OFF)

    const protectedAgain = primary.next(isProtected)
    primary.group.setReplicating(true)
    await protectedAgain
    t.equal(hellos(), before + 1)
    const { checkpoint } = await primary.group.checkpoint()
    t.equal(pair.secondary.group.status().checkpoint, checkpoint)
    await pair.close()
  },
)
