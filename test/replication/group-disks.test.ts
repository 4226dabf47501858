/** A pair of groups over real links on loopback, whose disks come, grow and go while both run. */

import t from 'tap'

import { Fault } from '../../core/fault.ts'
import { MiB } from '../../core/units.ts'
import { freePorts } from '../support/scope.ts'
import { BLOCK, Image, Side, SIZE, start } from './disk-pair.ts'
import { MemorySegments } from './journal/memory-segments.ts'

const STEPS: Readonly<Record<string, readonly ('primary' | 'secondary')[]>> = {
  'the secondary first': ['secondary', 'primary'],
  'the primary first': ['primary', 'secondary'],
}

for (const [order, sides] of Object.entries(STEPS))
  void t.test(`a disk is added to a running group, ${order}`, async (t) => {
    const pair = await start(t)
    const { primary, secondary } = pair
    const image = new Image(SIZE)
    image.write(Buffer.alloc(BLOCK, 7), 0)
    const unprotected = primary.events.length
    await (sides[0] === 'primary' ? primary.add('b', image) : secondary.add('b'))
    await primary.write('a', 0, 1)
    await primary.group.checkpoint(undefined)
    t.equal(await secondary.read('a', 0), 1, 'the other disk is protected all the time')
    if (sides[0] === 'secondary')
      t.throws(() => secondary.disk('b').read(Buffer.alloc(BLOCK), 0), {
        message: /in no checkpoint yet/,
      })
    await (sides[1] === 'primary' ? primary.add('b', image) : secondary.add('b'))
    await primary.write('b', BLOCK, 8)
    t.equal(primary.standing('b'), 'new')
    // It counts with the first checkpoint that follows its copy.
    while (primary.standing('b') !== 'whole') await primary.group.checkpoint(undefined)
    t.equal(secondary.standing('b'), 'whole')
    t.equal(await secondary.read('b', 0), 7, 'what it held when it was added')
    t.equal(await secondary.read('b', BLOCK), 8, 'what was written meanwhile')
    await primary.write('b', 0, 9)
    t.equal(await secondary.read('b', 0), 7, 'no checkpoint has it')
    await primary.group.checkpoint(undefined)
    t.equal(await secondary.read('b', 0), 9)
    const lost = primary.events
      .slice(unprotected)
      .filter(({ event }) => event === 'REPLICATION_LINK' || event === 'REPLICATION_PROTECTION')
    t.same(lost, [], 'the link was there all the time')
  })

void t.test(
  'a copy beside the stream waits for checkpoints, and takes its share of each',
  async (t) => {
    const { primary, secondary } = await start(t, { memory: 8 * MiB })
    await secondary.add('b', new Image(16 * MiB))
    const image = new Image(16 * MiB)
    for (let at = 0; at < 16 * MiB; at += MiB) image.write(Buffer.alloc(MiB, 1 + at / MiB), at)
    await primary.add('b', image)
    let checkpoints = 0
    for (; primary.standing('b') !== 'whole'; checkpoints += 1) {
      await primary.write('a', 0, checkpoints % 256)
      await primary.group.checkpoint(undefined)
      t.equal(primary.group.status().protection, 'protected')
    }
    t.ok(checkpoints > 8, `a disk that is larger than the memory took ${checkpoints} checkpoints`)
    for (let at = 0; at < 16 * MiB; at += MiB) t.equal(await secondary.read('b', at), 1 + at / MiB)
  },
)

void t.test(
  'a disk whose copy is not whole is not served after a promote; the others are',
  async (t) => {
    const { primary, secondary } = await start(t, { memory: 8 * MiB })
    await secondary.add('b', new Image(16 * MiB))
    await primary.add('b', new Image(16 * MiB))
    await primary.write('b', 0, 5, MiB)
    await primary.write('a', 0, 6)
    // Nothing of it counts while the primary holds the copy back.
    await primary.group.checkpoint(undefined)

    await primary.group.close()
    await secondary.group.promote(true)
    t.equal(await secondary.read('a', 0), 6)
    t.equal(secondary.standing('b'), 'partial')
    t.throws(() => secondary.disk('b').read(Buffer.alloc(BLOCK), 0), { code: 'NOT_PERMITTED' })
    t.throws(() => secondary.disk('b').write(Buffer.alloc(BLOCK), 0, 0), { code: 'NOT_PERMITTED' })
    await secondary.remove('b')
    const again = await secondary.add('b', new Image(SIZE))
    await again.write(Buffer.alloc(BLOCK, 3), 0, 0)
    t.equal(await secondary.read('b', 0), 3, 'removed and added anew it is')
  },
)

void t.test(
  'a disk leaves a group: what was committed is in its image, and the others go on',
  async (t) => {
    for (const [order, sides] of Object.entries(STEPS)) {
      const { primary, secondary } = await start(t, {}, ['a', 'b', 'c'])
      await primary.write('a', 0, 1)
      await primary.write('b', 0, 2)
      await primary.write('c', 0, 3)
      await primary.group.checkpoint(undefined)
      await primary.write('b', 0, 4)
      const before = primary.events.length
      for (const side of sides) await (side === 'primary' ? primary : secondary).remove('b')
      const block = Buffer.alloc(BLOCK)
      secondary.images.get('b')?.read(block, 0)
      t.ok(block[0] === 2 || block[0] === 4, `${order}: the secondary's image is left in peace`)
      primary.images.get('b')?.read(block, 0)
      t.equal(block[0], 4)
      await primary.write('c', 0, 5)
      await primary.group.checkpoint(undefined)
      t.equal(await secondary.read('c', 0), 5, order)
      t.same(
        [primary, secondary].map(({ group }) => group.status().disks.map(({ name }) => name)),
        [
          ['a', 'c'],
          ['a', 'c'],
        ],
      )
      const lost = primary.events.slice(before).filter(({ event }) => event === 'REPLICATION_LINK')
      t.same(lost, [], `${order}: the link was there all the time`)
    }
  },
)

void t.test('a disk grows, the secondary first', async (t) => {
  const { primary, secondary } = await start(t)
  const [a, there] = [primary.disk('a'), secondary.disk('a')]
  await primary.write('a', SIZE - BLOCK, 1)
  await t.rejects(a.resize(4 * SIZE), { message: /1048576 bytes: grow that one first/ })
  t.equal(a.geometry.size, SIZE)
  await t.rejects(a.resize(SIZE / 2), { message: /does not become smaller/ })
  await t.rejects(there.resize(SIZE + 1), { message: /multiple of 512/ })
  await there.resize(4 * SIZE)
  await primary.group.checkpoint(undefined)
  await a.resize(4 * SIZE)
  t.equal(a.geometry.size, 4 * SIZE)
  await primary.write('a', 4 * SIZE - BLOCK, 2)
  await primary.group.checkpoint(undefined)
  t.equal(there.geometry.size, 4 * SIZE)
  t.equal(await secondary.read('a', SIZE - BLOCK), 1)
  t.equal(await secondary.read('a', SIZE), 0)
  t.equal(await secondary.read('a', 4 * SIZE - BLOCK), 2)
  t.same(
    primary.events.filter(({ event }) => event === 'REPLICATION_LINK').length,
    1,
    'the link was there all the time',
  )
})

void t.test(
  'a disk that has grown on the primary alone, without its link, waits for the other side',
  async (t) => {
    const { primary, secondary } = await start(t)
    primary.group.setReplicating(false)
    await primary.disk('a').resize(2 * SIZE)
    await primary.write('a', 2 * SIZE - BLOCK, 9)
    primary.group.setReplicating(true)
    await primary.until(({ reason }) => /has 2097152 bytes on the primary/.test(reason ?? ''))
    t.equal(primary.group.status().heals, true, 'no operator is needed')
    await secondary.disk('a').resize(2 * SIZE)
    await primary.untilProtected()
    await primary.group.checkpoint(undefined)
    t.equal(await secondary.read('a', 2 * SIZE - BLOCK), 9)
  },
)

void t.test('what was added, removed and grown is so after a restart of either side', async (t) => {
  const first = await start(t)
  const { primary, secondary, stores, port } = first
  await secondary.add('b')
  await primary.add('b')
  await primary.write('b', 0, 4)
  while (primary.standing('b') !== 'whole') await primary.group.checkpoint(undefined)
  await secondary.disk('a').resize(2 * SIZE)
  await primary.disk('a').resize(2 * SIZE)
  await primary.write('a', SIZE, 5)
  await primary.group.checkpoint(undefined)
  await primary.group.close()
  const images = (side: Side): [string, Image][] => [...side.images]
  const again = new Side('primary', port, stores.primary)
  for (const [name, image] of images(primary)) again.attach(name, image)
  t.teardown(() => again.group.close())
  await again.group.start()
  await again.untilProtected()
  t.equal(again.standing('b'), 'whole')
  await again.write('b', BLOCK, 6)
  await again.group.checkpoint(undefined)
  t.equal(await secondary.read('b', BLOCK), 6)
  t.equal(await secondary.read('b', 0), 4)
  t.equal(await secondary.read('a', SIZE), 5)
})

void t.test(
  'a journal is refused without a disk that its checkpoints have, and takes one more',
  async (t) => {
    const store = new MemorySegments()
    const [port = 0] = await freePorts(1)
    const start = async (names: readonly string[]): Promise<Side> => {
      const side = new Side('primary', port, store)
      for (const name of names) side.attach(name)
      await side.group.start()
      return side
    }
    await (await start(['a', 'b'])).group.close()
    const fewer = new Side('primary', port, store)
    fewer.attach('a')
    await t.rejects(fewer.group.start(), { message: /journal belongs to .*"b"/ })
    const more = await start(['a', 'b', 'c'])
    t.same([more.standing('a'), more.standing('b'), more.standing('c')], ['whole', 'whole', 'new'])
    await more.group.close()
    const without = await start(['a', 'b'])
    t.equal(without.standing('c'), undefined, 'one that no checkpoint has may be left out again')
    await without.group.close()
  },
)

void t.test('a role is not exchanged while a disk is in no checkpoint', async (t) => {
  const { primary } = await start(t)
  await primary.add('b')
  await t.rejects(primary.group.switchover(undefined), { message: /disk "b" is not on the other/ })
  await primary.remove('b')
})

void t.test('the last disk does not leave its group, which stays protected', async (t) => {
  const { primary, secondary } = await start(t)
  for (const { group } of [primary, secondary]) {
    const refused = { code: 'NOT_PERMITTED', message: /the last disk of its group: disk "a"/ }
    await t.rejects(group.refuseDismissal('a'), refused)
    await t.rejects(group.dismiss('a'), refused)
  }
  await primary.write('a', 0, 1)
  await primary.group.checkpoint(undefined)
  t.equal(await secondary.read('a', 0), 1)
})

void t.test('a disk that could not join is closed, and nothing else', async (t) => {
  const { primary, secondary } = await start(t)
  const disk = primary.attach('b')
  await disk.close()
  await primary.group.admit()
  t.same(
    primary.group.status().disks.map(({ name }) => name),
    ['a'],
  )
  await primary.write('a', 0, 1)
  await primary.group.checkpoint(undefined)
  t.equal(await secondary.read('a', 0), 1)
  t.equal(primary.group.closed, false)
})

void t.test('a disk whose size a crash could take back is not added', async (t) => {
  const { primary } = await start(t)
  const image = new Image(SIZE)
  Object.assign(image, { flush: () => Promise.reject(new Fault('IO', 'it cannot be flushed')) })
  await t.rejects(primary.add('b', image), { message: /cannot be flushed/ })
  await primary.disk('b').close()
  t.equal(primary.standing('b'), undefined)
  t.equal((await primary.add('c')).geometry.size, SIZE, 'others can be')
})
