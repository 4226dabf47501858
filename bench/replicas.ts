/**
 * Who is compared in replication: QEMU's pair and colotap's, and the same software without a second side. Both sides
 * of a pair run on this machine and share its cores, disk and page cache; the link is TCP on loopback.
 */

import path from 'node:path'
import { mustRun } from '../test/support/child.ts'
import {
  checkQemu,
  startLoneQemu,
  startQemuPair,
  type QemuPair,
} from '../test/support/qemu-pair.ts'
import { ProgramScope, tempDirectory, type Scope } from '../test/support/scope.ts'
import { startColotapPair } from './colotap-pair.ts'
import { colotapOn } from './contenders.ts'
import type { Effort } from './effort.ts'
import type { Workload } from './fio.ts'
import type { Pair } from './pair.ts'
import { COLOTAP } from './table.ts'

export const MIB = 1024 ** 2
/** Bytes of the image, and the part of it that an epoch dirties. */
const IMAGE_SIZE = 1024 * MIB
export const WORKING_SET = 256 * MIB

export const QEMU = 'QEMU COLO'
export const QEMU_ALONE = 'QEMU alone'
export const COLOTAP_ALONE = 'colotap alone'
export const COLOTAP_MEMORY = 'colotap, durability=memory'

export interface Subject {
  readonly name: string
  /** Starts it on fresh images. */
  start(scope: Scope, directory: string): Promise<Pair>
}

/** Everybody who is compared, in the order of the columns. */
export interface Subjects {
  readonly all: readonly Subject[]
  /** Those that replicate. */
  readonly pairs: readonly Subject[]
  /** Whether colotap's checkpoint survives a crash of the secondary; only then is there a subject without that. */
  readonly durable: boolean
}

/** Asks a colotap pair what it promises, and chooses the subjects accordingly. */
export async function subjects(effort: Effort): Promise<Subjects> {
  const durable = await withSubject(effort, COLOTAP_PAIR, (_scope, pair) => pair.durable())
  const pairs = [QEMU_PAIR, COLOTAP_PAIR, ...(durable ? [COLOTAP_MEMORY_PAIR] : [])]
  return { all: [...LONE, ...pairs], pairs, durable }
}

export function durabilityNote(durable: boolean): string {
  const colotap = durable
    ? `one of colotap does, except in the column "${COLOTAP_MEMORY}".`
    : 'neither does one of this colotap.'
  return `A checkpoint of QEMU does not survive a crash of the secondary; ${colotap}`
}

const LONE: readonly Subject[] = [
  {
    name: QEMU_ALONE,
    start: async (scope, directory) =>
      alone(await startLoneQemu(scope, (await images(scope, directory))[0])),
  },
  { name: COLOTAP_ALONE, start: loneColotap },
]

const QEMU_PAIR: Subject = {
  name: QEMU,
  start: async (scope, directory) =>
    measured(await startQemuPair(scope, ...(await images(scope, directory)), IMAGE_SIZE)),
}

const COLOTAP_PAIR: Subject = {
  name: COLOTAP,
  start: (scope, directory) => colotapPair(scope, directory),
}

const COLOTAP_MEMORY_PAIR: Subject = {
  name: COLOTAP_MEMORY,
  start: (scope, directory) => colotapPair(scope, directory, ['durability=memory']),
}

async function colotapPair(scope: Scope, directory: string, settings?: string[]): Promise<Pair> {
  return startColotapPair(scope, ...(await images(scope, directory)), settings)
}

async function loneColotap(scope: Scope, directory: string): Promise<Pair> {
  const aio = colotapOn((image) => `aio:${image}`)
  const { uri } = await aio.start(scope, (await images(scope, directory))[0])
  return alone(uri)
}

function measured(pair: QemuPair): Pair {
  return {
    uri: pair.uri,
    async checkpoint() {
      const started = performance.now()
      await pair.checkpoint()
      const milliseconds = performance.now() - started
      await checkQemu(pair.primary)
      return { milliseconds }
    },
    durable: () => Promise.resolve(false),
  }
}

function alone(uri: string): Pair {
  return {
    uri,
    checkpoint: () => Promise.resolve({ milliseconds: Number.NaN }),
    durable: () => Promise.resolve(true),
  }
}

/** Two equal images, every block allocated and in the page cache. */
export async function images(scope: Scope, directory: string): Promise<[string, string]> {
  const pair: [string, string] = [
    path.join(directory, 'primary.img'),
    path.join(directory, 'secondary.img'),
  ]
  for (const image of pair) {
    await mustRun(
      scope,
      'dd',
      ['if=/dev/zero', `of=${image}`, 'bs=1M', `count=${IMAGE_SIZE / MIB}`, 'status=none'],
      { patienceMs: 600_000 },
    )
  }
  await mustRun(scope, 'sync', [], { patienceMs: 600_000 })
  return pair
}

export function write(
  name: string,
  blockKiB: Workload['blockKiB'],
  depth: number,
  more: Partial<Workload> = {},
): Workload {
  return {
    ...{ name, rw: blockKiB === 4 ? 'randwrite' : 'write', blockKiB, depth, size: WORKING_SET },
    unit: blockKiB === 4 ? 'kIOPS' : 'GB/s',
    ...more,
  }
}

export const DIRTY_ALL = write('fill', 256, 8, { bytes: WORKING_SET })
/** Starts the subject on fresh images, lets `use` work with it, and clears everything away. */
export async function withSubject<T>(
  effort: Effort,
  subject: Subject,
  use: (scope: Scope, pair: Pair) => Promise<T>,
): Promise<T> {
  const scope = new ProgramScope()
  try {
    const directory = await tempDirectory(scope, effort.directory)
    return await use(scope, await subject.start(scope, directory))
  } finally {
    await scope.end()
  }
}
