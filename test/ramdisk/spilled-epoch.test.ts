import fc from 'fast-check'
import t from 'tap'
import { GiB, KiB, MiB, SECTOR, TiB } from '../../core/units.ts'
import { PageMemory, SLAB } from '../../ramdisk/page-memory.ts'
import { SpilledEpoch } from '../../ramdisk/spilled-epoch.ts'
import { completed, tagged } from './unruly-image.ts'
import { UnrulyRecords } from './unruly-records.ts'

/** Two leaves and a bit of the index, with a tail that is no whole sector. */
const SIZE = 70 * SECTOR + 100
const SECTORS = Math.ceil(SIZE / SECTOR)

const change = fc.record({
  op: fc.constantFrom('write', 'write', 'zero', 'clear'),
  punch: fc.boolean(),
  first: fc.nat(SECTORS - 1),
  count: fc.integer({ min: 1, max: 40 }),
})

/** Nothing, data, or zeroes that keep or give up their space. */
type Kind = 'none' | 'data' | 'punched' | 'kept'

function calmRecords(): UnrulyRecords {
  const records = new UnrulyRecords(1)
  records.calm()
  return records
}

void t.test('a spilled epoch answers as an array of bytes would, after any changes', async (t) => {
  await fc.assert(
    fc.asyncProperty(fc.array(change, { maxLength: 25 }), async (changes) => {
      const memory = new PageMemory(4 * MiB)
      const records = calmRecords()
      const epoch = new SpilledEpoch(memory, SIZE, records)
      const bytes = Buffer.alloc(SIZE, 0xee)
      const kinds = new Array<Kind>(SECTORS).fill('none')
      for (const [index, { op, punch, first, count }] of changes.entries()) {
        const at = first * SECTOR
        const end = Math.min(at + count * SECTOR, SIZE)
        const data = tagged(index + 1, end - at)
        if (op === 'write') epoch.write(at, end - at, records.add(at, data))
        else if (op === 'zero') epoch.zero(at, end - at, punch)
        else epoch.clear(at, end - at)
        if (op === 'write') data.copy(bytes, at)
        else bytes.fill(op === 'zero' ? 0 : 0xee, at, end)
        const kind: Kind =
          op === 'write' ? 'data' : op === 'clear' ? 'none' : punch ? 'punched' : 'kept'
        kinds.fill(kind, first, Math.ceil(end / SECTOR))
      }
      const into = Buffer.alloc(SIZE, 0xee)
      await completed(epoch.copy(into, 0))
      if (!into.equals(bytes)) throw new Error('other bytes')
      const sectors = (wanted: (kind: Kind) => boolean): number => kinds.filter(wanted).length
      const held = [epoch.bytes / SECTOR, epoch.zeroBytes / SECTOR]
      const zeroes = sectors((kind) => kind === 'punched' || kind === 'kept')
      if (String(held) !== String([sectors((kind) => kind === 'data'), zeroes]))
        throw new Error(`${String(held)} sectors are held`)
      for (let first = 0; first < SECTORS; first += 1) {
        const differs = kinds.findIndex(
          (kind, sector) => sector > first && (kind === 'none') !== (kinds[first] === 'none'),
        )
        const until = differs === -1 ? SIZE : differs * SECTOR
        const same = epoch.sameUntil(first * SECTOR, SIZE)
        if (same !== (kinds[first] === 'none' ? -until : until))
          throw new Error(`from ${first} the same until ${same}`)
        const run = epoch.next(first * SECTOR, SIZE)
        const begin = kinds.findIndex((kind, sector) => sector >= first && kind !== 'none')
        const other = kinds.findIndex((kind, sector) => sector > begin && kind !== kinds[begin])
        const stop = other === -1 ? SIZE : other * SECTOR
        const wanted = begin === -1 ? undefined : [begin * SECTOR, stop, kinds[begin]]
        if (String(wanted) !== String(run && [run.at, run.at + run.length, run.kind]))
          throw new Error(`from ${first} the next run is ${JSON.stringify(run)}`)
      }
      epoch.release()
      if (memory.bytesInUse !== 0) throw new Error('memory is still in use')
    }),
    { numRuns: 400 },
  )
  t.end()
})

void t.test('the index of large writes takes less than a hundredth of their data', (t) => {
  const memory = new PageMemory(64 * MiB)
  const epoch = new SpilledEpoch(memory, 16 * TiB, calmRecords())
  for (let at = 0; at < GiB; at += 256 * KiB) epoch.write(10 * GiB + at, 256 * KiB, at)
  t.equal(epoch.bytes, GiB)
  t.ok(memory.bytesInUse < 0.01 * GiB + SLAB, `${memory.bytesInUse} bytes for a GiB`)
  epoch.zero(0, 16 * TiB, true)
  t.equal(epoch.bytes, 0)
  t.equal(epoch.zeroBytes, 16 * TiB)
  epoch.clear(0, 16 * TiB)
  t.equal(memory.bytesInUse, 0, 'what holds nothing takes nothing')
  t.end()
})

void t.test('at the memory limit a write is refused with everything left as it was', (t) => {
  const memory = new PageMemory(2 * SLAB)
  const epoch = new SpilledEpoch(memory, TiB, calmRecords())
  let count = 0
  while (memory.canIndex(4 * KiB)) {
    epoch.write(count * 16 * MiB, 4 * KiB, count)
    count += 1
  }
  t.ok(count > 500, `${count} scattered writes in ${SLAB} bytes`)
  t.ok(memory.bytesInUse <= memory.limit)
  const refused = (): void => {
    for (;;) {
      epoch.write(count * 16 * MiB, 4 * KiB, count)
      count += 1
    }
  }
  t.throws(refused, { code: 'NO_MEMORY' })
  t.equal(epoch.bytes, count * 4 * KiB)
  t.equal(epoch.sameUntil(count * 16 * MiB, TiB), -TiB, 'nothing of the last one is there')
  t.ok(memory.bytesInUse <= memory.limit)
  epoch.release()
  t.equal(memory.bytesInUse, 0)
  t.end()
})
