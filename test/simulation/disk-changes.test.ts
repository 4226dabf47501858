/** In which order a toolstack gives both sides of a simulated pair the same disks again. */

import t from 'tap'

import { SECTOR } from '../../core/units.ts'
import { lackOf } from './disk-changes.ts'

const SLOTS = [0, 1]

interface Disk {
  readonly sectors: number
  readonly withheld?: boolean
}

/** A host with images of 4 sectors, of which its group has these, by slot. */
const host = (disks: Readonly<Record<number, Disk>>): Parameters<typeof lackOf>[0] => ({
  has: (slot) => slot in disks,
  isWithheld: (slot) => disks[slot]?.withheld === true,
  size: (slot) => (disks[slot]?.sectors ?? 4) * SECTOR,
})

const whole = host({ 0: { sectors: 4 }, 1: { sectors: 4 } })

void t.test(
  'what serves nobody goes, and comes anew; but it is not taken from an empty group',
  (t) => {
    const alone = host({ 0: { sectors: 4, withheld: true } })
    t.same(lackOf(alone, whole, SLOTS, true), { kind: 'add', slot: 1 })
    const both = host({ 0: { sectors: 4, withheld: true }, 1: { sectors: 4 } })
    t.same(lackOf(both, whole, SLOTS, true), { kind: 'remove', slot: 0 })
    t.equal(lackOf(both, whole, SLOTS, false), undefined, 'a secondary is sent all of it')
    t.end()
  },
)

void t.test('sizes follow the larger side', (t) => {
  const larger = host({ 0: { sectors: 4 }, 1: { sectors: 9 } })
  t.same(lackOf(whole, larger, SLOTS, true), { kind: 'grow', slot: 1, sectors: 9 })
  t.equal(lackOf(larger, whole, SLOTS, true), undefined)
  t.end()
})
