/** The map of changed regions as a file: what comes back, and what cannot be trusted. */

import { readdir, readFile, rename, stat, truncate, writeFile } from 'node:fs/promises'
import path from 'node:path'

import t from 'tap'

import { KiB, MiB, SECTOR } from '../../../core/units.ts'
import { openFileRegions, removeFileRegions } from '../../../replication/regions/file-regions.ts'
import { RegionMap } from '../../../replication/regions/region-map.ts'
import type { RegionStore } from '../../../replication/regions/region-store.ts'
import { tempDirectory } from '../../support/scope.ts'

const REGION = 64 * KiB
/** Three sectors of bits. */
const SIZE = 600 * MiB
const HEADER = 4096

const open = (folder: string, fresh = false, disk = 'a', size = SIZE): Promise<RegionStore> =>
  openFileRegions(folder, disk, size, REGION, fresh)

const fileOf = (folder: string): string => path.join(folder, 'changed-a.map')

async function marked(store: RegionStore, size = SIZE): Promise<unknown[]> {
  const ranges = new RegionMap(store, size).ranges()
  await store.close()
  return ranges
}

const EVERYTHING = [{ at: 0, length: SIZE }]

/** A folder with a good map, in which a few regions are marked. */
async function written(t: Parameters<typeof tempDirectory>[0]): Promise<string> {
  const folder = await tempDirectory(t)
  const store = await open(folder, true)
  const map = new RegionMap(store, SIZE)
  await map.mark(0, 1)
  await map.mark(5000 * REGION, 2 * REGION)
  await map.close()
  return folder
}

const MARKED = [
  { at: 0, length: REGION },
  { at: 5000 * REGION, length: 2 * REGION },
]

void t.test(
  'what was marked is found by the next process, and what was cleared is not',
  async (t) => {
    const folder = await written(t)
    t.same(await marked(await open(folder)), MARKED)
    t.equal((await stat(fileOf(folder))).mode & 0o777, 0o600)
    const map = new RegionMap(await open(folder), SIZE)
    await map.clear(Infinity)
    await map.close()
    t.same(await marked(await open(folder)), [])
    t.same(await readdir(folder), ['changed-a.map'])
  },
)

void t.test('only the sectors that were asked for are written', async (t) => {
  const folder = await tempDirectory(t)
  const store = await open(folder, true)
  await store.save(Buffer.alloc(3 * 512, 0xff), [1])
  await store.close()
  const sectors = (await readFile(fileOf(folder))).subarray(HEADER)
  t.same(
    [0, 1, 2].map((sector) => sectors.subarray(sector * 512, (sector + 1) * 512)),
    [Buffer.alloc(512), Buffer.alloc(512, 0xff), Buffer.alloc(512)],
  )
})

void t.test('a fresh map forgets an old one', async (t) => {
  const folder = await written(t)
  t.same(await marked(await open(folder, true)), [])
  t.same(await marked(await open(folder)), [])
})

void t.test(
  'a map that cannot be trusted is one of everything, for the next process too',
  async (t) => {
    const cases: readonly (readonly [string, (file: string) => Promise<void>])[] = [
      ['missing', (file) => rename(file, `${file}.away`)],
      ['empty', (file) => truncate(file, 0)],
      ['cut in its header', (file) => truncate(file, 100)],
      ['cut in its bitmap', (file) => truncate(file, HEADER + 3 * 512 - 1)],
      ['of another program', (file) => writeFile(file, Buffer.alloc(HEADER + 3 * 512, 7))],
      ['all zeroes', (file) => writeFile(file, Buffer.alloc(HEADER + 3 * 512))],
      [
        'with a damaged header',
        async (file) => {
          const bytes = await readFile(file)
          bytes[20] = (bytes[20] ?? 0) ^ 1
          await writeFile(file, bytes)
        },
      ],
    ]
    for (const [what, damage] of cases) {
      const folder = await written(t)
      await damage(fileOf(folder))
      t.same(await marked(await open(folder)), EVERYTHING, what)
      t.same(await marked(await open(folder)), EVERYTHING, `${what}, again`)
    }
  },
)

void t.test('a map of another disk, size or unit is one of everything', async (t) => {
  const folder = await written(t)
  const file = fileOf(folder)
  t.same(await marked(await open(folder, false, 'b')), EVERYTHING, 'its own file')
  t.same(await marked(await open(folder)), MARKED, 'which leaves the other one alone')
  await writeFile(path.join(folder, 'changed-b.map'), await readFile(file))
  t.same(await marked(await open(folder, false, 'b')), EVERYTHING, 'a copy under its name')
  const smaller = SIZE - REGION
  t.same(await marked(await open(folder, false, 'a', smaller), smaller), [
    { at: 0, length: smaller },
  ])
  const other = await written(t)
  const store = await openFileRegions(other, 'a', SIZE, 2 * REGION, false)
  t.same(await marked(store), EVERYTHING, 'another unit')
})

void t.test(
  'the map of a disk that has grown keeps what it knew, and has the rest marked',
  async (t) => {
    for (const gained of [SECTOR, REGION, 9000 * REGION]) {
      const folder = await written(t)
      const larger = SIZE + gained
      const found = await marked(await open(folder, false, 'a', larger), larger)
      t.same(found, [...MARKED, { at: SIZE, length: gained }])
      t.same(await marked(await open(folder, false, 'a', larger), larger), found, 'durably')
    }
  },
)

void t.test('the map of a disk that has left its group is gone', async (t) => {
  const folder = await written(t)
  await removeFileRegions(folder, 'a')
  await removeFileRegions(folder, 'a')
  t.same(await readdir(folder), [])
})

void t.test('a map that was being made when the power failed is no map', async (t) => {
  const folder = await tempDirectory(t)
  await writeFile(`${fileOf(folder)}.new`, 'half')
  t.same(await marked(await open(folder)), EVERYTHING)
  t.same(await readdir(folder), ['changed-a.map'])
})

void t.test('the name of a disk cannot leave the folder', async (t) => {
  const folder = await tempDirectory(t)
  await (await open(folder, true, '../../evil/name')).close()
  t.same(await readdir(folder), ['changed-..%2F..%2Fevil%2Fname.map'])
})

void t.test('a folder or file that cannot be used is a fault that names it', async (t) => {
  const folder = path.join(await tempDirectory(t), 'missing')
  await t.rejects(open(folder), { code: 'IO', message: /missing/ })
  await t.rejects(open(folder, true), { code: 'IO', message: /missing/ })
  const store = await open(await tempDirectory(t), true)
  await store.close()
  await t.rejects(store.save(Buffer.alloc(3 * 512), [0]), {
    code: 'IO',
    message: /cannot write the map of changed regions/,
  })
})
