/**
 * One server, one client: NBD over raw files, memory, QCOW2 and VHD.
 *
 * Every sample is taken with only its own server running, after what earlier ones wrote has reached the disk, with
 * the image in the page cache. Subjects take turns within a round, so that a change of the machine's mood meets all.
 */

import { rm } from 'node:fs/promises'
import path from 'node:path'
import { mustRun } from '../test/support/child.ts'
import { ProgramScope, type Scope } from '../test/support/scope.ts'
import {
  colotapOn,
  nbdkitFile,
  nbdkitMemory,
  qemuNbd,
  type Contender,
  type QemuFormat,
} from './contenders.ts'
import type { Effort } from './effort.ts'
import { runFio, type Workload } from './fio.ts'
import { atLeast, RowBuilder, type Budget, type Row, type Section } from './table.ts'

export const DISK_SIZE = 1024 ** 3

const FULL_SPEED: readonly Workload[] = [
  work('4 KiB random read, qd 32', 'randread', 4, 32),
  work('4 KiB random write, qd 32', 'randwrite', 4, 32),
  work('256 KiB sequential read, qd 8', 'read', 256, 8),
  work('256 KiB sequential write, qd 8', 'write', 256, 8),
]

const WORKLOADS: readonly Workload[] = [
  ...FULL_SPEED,
  work('4 KiB random read, qd 1', 'randread', 4, 1),
  work('4 KiB random write, qd 1', 'randwrite', 4, 1),
]

/** A disk that is larger than what is written to it, so that there are enough places. */
const EMPTY_DISK = 16 * DISK_SIZE
/** As much as takes some seconds: a server in its first second is another comparison. */
const ALLOCATED = 3 * DISK_SIZE

/** Each cluster or block of the image is written for the first time. */
const ALLOCATING: readonly Workload[] = [
  {
    ...work('4 KiB random write, allocating, qd 32', 'randwrite', 4, 32),
    ...{ size: EMPTY_DISK, bytes: DISK_SIZE / 4, alignKiB: 64 },
  },
  {
    ...work('64 KiB random write, allocating, qd 32', 'randwrite', 64, 32),
    ...{ size: EMPTY_DISK, bytes: ALLOCATED },
  },
  {
    ...work('256 KiB sequential write, allocating, qd 8', 'write', 256, 8),
    ...{ size: ALLOCATED, bytes: ALLOCATED },
  },
]

function work(
  name: string,
  rw: Workload['rw'],
  blockKiB: Workload['blockKiB'],
  depth: number,
): Workload {
  return { name, rw, blockKiB, depth, unit: blockKiB < 256 ? 'kIOPS' : 'GB/s', size: DISK_SIZE }
}

/** One comparison: who, on which image, doing what. */
interface Contest {
  readonly contenders: readonly Contender[]
  readonly workloads: readonly Workload[]
  /** Makes the image; called before each sample when `fresh`, else once. */
  prepare(scope: Scope, image: string): Promise<void>
  readonly fresh: boolean
  budgets(row: RowBuilder): Budget[]
}

async function compete(effort: Effort, contest: Contest): Promise<Row[]> {
  const scope = new ProgramScope()
  const image = path.join(effort.directory, 'disk.img')
  const rows = contest.workloads.map((workload) => ({ workload, row: new RowBuilder() }))
  try {
    if (!contest.fresh) await contest.prepare(scope, image)
    for (let round = 1; round <= effort.rounds; round++) {
      for (const { workload, row } of rows) {
        for (const contender of contest.contenders) {
          if (contest.fresh) await contest.prepare(scope, image)
          const value = await sample(effort, contender, image, workload)
          row.add(contender.name, value)
          effort.progress(
            `  round ${round}: ${workload.name}: ${contender.name} ${value.toFixed(2)} ${workload.unit}`,
          )
        }
      }
    }
  } finally {
    await scope.end()
    await rm(image, { force: true })
  }
  return rows.map(({ workload, row }) =>
    row.build(workload.name, workload.unit, contest.budgets(row)),
  )
}

async function sample(
  effort: Effort,
  contender: Contender,
  image: string,
  workload: Workload,
): Promise<number> {
  const scope = new ProgramScope()
  try {
    await mustRun(scope, 'sync', [], { patienceMs: 600_000 })
    const { uri } = await contender.start(scope, image)
    return (await runFio(scope, uri, workload, effort.seconds)).value
  } finally {
    await scope.end()
  }
}

/** A raw image whose every block is written, and therefore allocated and in the page cache. */
export async function writeRawImage(scope: Scope, image: string): Promise<void> {
  await mustRun(
    scope,
    'dd',
    ['if=/dev/urandom', `of=${image}`, 'bs=1M', `count=${DISK_SIZE / 1024 ** 2}`, 'status=none'],
    { patienceMs: 600_000 },
  )
}

export async function rawSection(effort: Effort): Promise<Section> {
  const qemu = [qemuNbd('raw', 'threads'), qemuNbd('raw', 'io_uring')]
  const contenders = [...qemu, nbdkitFile, colotapOn((image) => `aio:${image}`)]
  const rows = await compete(effort, {
    contenders,
    workloads: WORKLOADS,
    prepare: writeRawImage,
    fresh: false,
    budgets: (row) => [
      ...atLeast(row, 1, [...qemu.map(({ name }) => name), nbdkitFile.name], 'the best peer'),
      ...atLeast(row, 2, [qemu[0]?.name ?? ''], 'qemu-nbd threads'),
    ],
  })
  return {
    title: 'A raw image file',
    about: 'One preallocated file of 1 GiB, in the page cache; colotap serves it with `aio`.',
    rows,
  }
}

export async function memorySection(effort: Effort): Promise<Section> {
  const peer = nbdkitMemory(DISK_SIZE)
  const contenders = [peer, colotapOn(() => `ram:${DISK_SIZE}`)].map(filledFirst)
  const rows = await compete(effort, {
    contenders,
    workloads: FULL_SPEED,
    prepare: () => Promise.resolve(),
    fresh: false,
    budgets: (row) => atLeast(row, 1, [peer.name], peer.name),
  })
  return {
    title: 'A disk in memory',
    about:
      'Both servers hold 1 GiB in memory, written once before each sample: reading what was never written costs nothing.',
    rows,
  }
}

function filledFirst(contender: Contender): Contender {
  return {
    name: contender.name,
    async start(scope, image) {
      const served = await contender.start(scope, image)
      await runFio(scope, served.uri, { ...work('fill', 'write', 256, 8), bytes: DISK_SIZE }, 0)
      return served
    },
  }
}

/** QCOW2 or VHD: written images for the usual work, and empty ones that must grow. */
async function formatSection(
  effort: Effort,
  format: QemuFormat,
  options: string[],
  pipeline: (image: string) => string,
): Promise<Row[]> {
  const qemu = [qemuNbd(format, 'threads'), qemuNbd(format, 'io_uring')]
  const peers = qemu.map(({ name }) => name)
  const contenders = [...qemu, colotapOn(pipeline)]
  const budgets = (row: RowBuilder): Budget[] => atLeast(row, 1.5, peers, 'the best qemu-nbd')
  const create = async (scope: Scope, image: string, size: number): Promise<void> => {
    await rm(image, { force: true })
    const all = ['create', '-q', '-f', format, ...options, image, String(size)]
    await mustRun(scope, 'qemu-img', all)
  }
  const empty = (scope: Scope, image: string): Promise<void> => create(scope, image, EMPTY_DISK)
  const fill = async (scope: Scope, image: string): Promise<void> => {
    await create(scope, image, DISK_SIZE)
    const own = new ProgramScope()
    const { uri } = await qemuNbd(format, 'threads').start(own, image)
    await runFio(own, uri, { ...work('fill', 'write', 256, 8), bytes: DISK_SIZE }, 0)
    await mustRun(own, 'qemu-io', ['-f', 'raw', '-c', 'flush', uri], { patienceMs: 600_000 })
    await own.end()
  }
  return [
    ...(await compete(effort, {
      ...{ contenders, workloads: FULL_SPEED, prepare: fill, fresh: false, budgets },
    })),
    ...(await compete(effort, {
      ...{ contenders, workloads: ALLOCATING, prepare: empty, fresh: true, budgets },
    })),
  ]
}

export async function qcowSection(effort: Effort): Promise<Section> {
  return {
    title: 'QCOW2',
    about:
      'Version 3, 64 KiB clusters. The first rows overwrite allocated clusters; the others write 256 MiB in pieces of 4 KiB, one to a cluster, and 3 GiB.',
    rows: await formatSection(effort, 'qcow2', [], (image) => `qcow:${image}`),
  }
}

export async function vhdSection(effort: Effort): Promise<Section> {
  const options = ['-o', 'subformat=dynamic,force_size=on']
  return {
    title: 'VHD, dynamic',
    about:
      'Blocks of 2 MiB. The first rows overwrite allocated blocks; the others write 256 MiB in pieces of 4 KiB and 3 GiB.',
    rows: await formatSection(effort, 'vpc', options, (image) => `vhd:${image}`),
  }
}
