/** What the judge of simulated runs lets a disk be that has left a secondary, by the stories of its primary. */

import t from 'tap'

import { frame, PARTIAL, type Frame } from '../../replication/machine/frame.ts'
import { encodeDisk, encodeHello } from '../../replication/machine/handshake.ts'
import type { HelloDisk } from '../../replication/machine/disk-sets.ts'
import { PRIMARY, SECONDARY } from '../replication/machine/hellos.ts'
import { Departures } from './departures.ts'
import type { Content } from './sectors.ts'
import { diskName } from './side-disks.ts'

const DISKS = [0, 1].map((slot) => ({ name: diskName(slot), size: 1024 }))
const BEFORE = content(1, 2)
/** As the primary removes it. */
const WITHDRAWN = content(3, 2)
/** What no side ever had. */
const MIXTURE = content(7, 7)

const greeting = (disks: readonly HelloDisk[]): Frame =>
  frame('hello', { payload: encodeHello({ ...PRIMARY, disks }) })
const answer = (disks: readonly HelloDisk[]): Frame =>
  frame('hello', { payload: encodeHello({ ...SECONDARY, disks }) })
const marker = (position: number, flags = 0): Frame => frame('checkpoint', { position, flags })
const write = (disk: number): Frame => frame('write', { disk, payload: Buffer.alloc(512) })
const offer = (disk: number, slot: number): Frame =>
  frame('offer', { disk, payload: encodeDisk(DISKS[slot]!) })
const of = (type: 'complete' | 'withdraw', disk: number): Frame => frame(type, { disk })

interface Story {
  readonly of: string
  /** Of the primary, after both greeted each other with both disks and checkpoint 5 was taken. */
  readonly frames: readonly Frame[]
  /** What the disk of slot 0 holds when it has left, and whether it may. */
  readonly holds: Content
  readonly allowed: boolean
}

const STORIES: readonly Story[] = [
  { of: 'the last checkpoint', frames: [write(0)], holds: BEFORE, allowed: true },
  {
    of: 'what was sent since, and is in no checkpoint',
    frames: [write(0)],
    holds: WITHDRAWN,
    allowed: false,
  },
  { of: 'a mixture', frames: [write(0), marker(6)], holds: MIXTURE, allowed: false },
  {
    of: 'what the primary had when it removed it',
    frames: [write(0), of('withdraw', 0), marker(6)],
    holds: WITHDRAWN,
    allowed: true,
  },
  {
    of: 'the same, added anew and written since',
    frames: [of('withdraw', 0), marker(6), offer(2, 0), write(2), of('complete', 2)],
    holds: WITHDRAWN,
    allowed: true,
  },
  {
    of: 'a mixture after the primary removed it',
    frames: [write(0), of('withdraw', 0), marker(6)],
    holds: MIXTURE,
    allowed: false,
  },
  {
    of: 'a part of a copy',
    frames: [of('withdraw', 0), offer(2, 0), write(2), marker(6)],
    holds: MIXTURE,
    allowed: true,
  },
  {
    of: 'a part of a copy that was broken off',
    frames: [of('withdraw', 0), offer(2, 0), write(2), of('withdraw', 2), marker(6)],
    holds: MIXTURE,
    allowed: true,
  },
  {
    of: 'a mixture although the copy was whole',
    frames: [of('withdraw', 0), offer(2, 0), write(2), of('complete', 2), write(2), marker(6)],
    holds: MIXTURE,
    allowed: false,
  },
  {
    of: 'a mixture beside the copy of another disk',
    frames: [of('withdraw', 1), offer(2, 1), write(2), write(0), marker(6)],
    holds: MIXTURE,
    allowed: false,
  },
  {
    of: 'a part of a copy that no checkpoint has',
    frames: [of('withdraw', 0), offer(2, 0), write(2), marker(7)],
    holds: MIXTURE,
    allowed: false,
  },
  {
    of: 'a part of a copy of all disks',
    frames: [write(0), marker(6, PARTIAL)],
    holds: MIXTURE,
    allowed: true,
  },
  {
    of: 'a mixture under the number of such a part that was lost',
    frames: [write(0), marker(6, PARTIAL), marker(6)],
    holds: MIXTURE,
    allowed: false,
  },
]

for (const { of: what, frames, holds, allowed } of STORIES)
  void t.test(`it is ${allowed ? 'let' : 'not let'} be ${what}`, (t) => {
    const departures = new Departures()
    const tell = (each: Frame): void =>
      departures.primarySends(each, [{ completed: WITHDRAWN }, { completed: BEFORE }])
    tell(greeting(DISKS))
    departures.secondarySends(answer(DISKS))
    for (const each of [marker(5), ...frames]) tell(each)
    t.equal(
      departures.allows(
        { slot: 0, since: 5, until: 6, content: holds },
        new Map([
          [4, [MIXTURE, BEFORE]],
          [5, [BEFORE, BEFORE]],
          [6, [undefined, BEFORE]],
          [7, [MIXTURE, BEFORE]],
        ]),
      ),
      allowed,
    )
    t.end()
  })

void t.test('a disk that stands apart when a link begins is copied on it', (t) => {
  for (const [side, ours, theirs] of [
    ['neither', undefined, undefined],
    ['the primary', 'new', undefined],
    ['the secondary', undefined, 'partial'],
  ] as const) {
    const departures = new Departures()
    const [first, second] = DISKS as [HelloDisk, HelloDisk]
    const standing = (apart: HelloDisk['apart']): HelloDisk[] => [
      apart === undefined ? first : { ...first, apart },
      second,
    ]
    const frames = [greeting(standing(ours)), write(0), marker(6)]
    for (const each of frames) {
      departures.primarySends(each, [])
      if (each.type === 'hello') departures.secondarySends(answer(standing(theirs)))
    }
    const departure = { slot: 0, since: 5, until: 6, content: MIXTURE }
    t.equal(departures.allows(departure, new Map()), side !== 'neither', side)
  }
  t.end()
})

function content(...tags: number[]): Content {
  return Int32Array.from(tags)
}
