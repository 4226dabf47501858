/** A guest that writes two disks of a pair without pause, and the judge of what is found after a crash. */

import { setImmediate as turn } from 'node:timers/promises'
import { NbdClient } from '../../nbd/client.ts'
import { BlockHistory, type Bounds } from '../../cli/soak/block-history.ts'
import { Workload } from '../../cli/soak/workload.ts'
import { below, seededRandom, type Random } from '../../core/seeded-random.ts'
import { imageContent, imageObjection } from './replica-images.ts'
import { groupState, type ReplicaHost } from './replica-pair.ts'
import type { Scope } from './scope.ts'

const BLOCK = 4096
const BLOCKS = 512
const LANES = 8

/** The names and sizes, in bytes, of the disks that the guest writes. */
export const DISKS: Readonly<Record<string, number>> = {
  root: BLOCKS * BLOCK,
  data: BLOCKS * BLOCK,
}

/** What each checkpoint may hold, by its number and the disk. */
export type Checkpoints = Map<number, readonly Bounds[]>

async function attach(host: ReplicaHost, name: string): Promise<NbdClient> {
  return NbdClient.connect({
    address: { kind: 'unix', path: host.server.socket },
    exportName: name,
  })
}

/** Begins to write every disk of the primary; `onWrite` is told the count of each disk's writes. */
export async function startWorkloads(
  primary: ReplicaHost,
  random: Random,
  onWrite: (writes: number) => void,
): Promise<{ workloads: Workload[]; ended: Promise<void> }> {
  const workloads: Workload[] = []
  const violations: string[] = []
  for (const name of Object.keys(DISKS)) {
    const client = await attach(primary, name)
    workloads.push(
      new Workload({
        ...{ client, onWrite, lanes: LANES, blocks: BLOCKS },
        history: new BlockHistory(BLOCKS, BLOCK, workloads.length),
        random: seededRandom(below(random, 2 ** 32)),
        onViolation: (violation) => violations.push(violation),
      }),
    )
  }
  const ended = Promise.all(workloads.map((workload) => workload.run())).then(() => {
    if (violations[0] !== undefined) throw new Error(violations[0])
  })
  // Whoever awaits the end hears of it; until then it is no unhandled rejection.
  ended.catch(() => undefined)
  return { workloads, ended }
}

/**
 * Takes checkpoints until one is not confirmed.
 * @returns what each checkpoint may hold, by number, the one under way at the end included
 */
export async function takeCheckpoints(
  primary: ReplicaHost,
  workloads: readonly Workload[],
  pauses: boolean,
): Promise<Checkpoints> {
  const empty = workloads.map(({ history }) => ({
    acknowledged: history.acknowledged(),
    issued: new Uint32Array(history.blocks),
  }))
  for (const { acknowledged } of empty) acknowledged.fill(0)
  const { checkpoint: first } = await groupState(primary.qmp)
  // The first copy, of empty disks, has ended with a checkpoint of its own.
  const checkpoints: Checkpoints = new Map([[first, empty]])
  for (let number = first + 1; ; number += 1) {
    const resumes = pauses ? workloads.map((workload) => workload.hold()) : []
    const acknowledged = workloads.map(({ history }) => history.acknowledged())
    let confirmed = 0
    try {
      const result = (await primary.qmp.execute('replication-checkpoint')) as { checkpoint: number }
      confirmed = result.checkpoint
    } catch {
      confirmed = 0
    }
    const bounds = workloads.map(({ history }, index) => ({
      acknowledged: acknowledged[index]!,
      issued: history.issued(),
    }))
    for (const resume of resumes) resume()
    // A guest that goes on does something before it is paused again.
    await turn()
    checkpoints.set(confirmed === 0 ? number : confirmed, bounds)
    if (confirmed === 0) return checkpoints
    if (confirmed !== number)
      throw new Error(`checkpoint ${confirmed} was confirmed, ${number} was expected`)
  }
}

/** @returns what is wrong with the promoted secondary */
export async function judge(
  scope: Scope,
  secondary: ReplicaHost,
  checkpoints: Checkpoints,
  workloads: readonly Workload[],
): Promise<string | undefined> {
  const { checkpoint, role } = await groupState(secondary.qmp)
  const last = Math.max(...checkpoints.keys())
  if (role !== 'active') return `the promoted secondary is ${role}`
  if (checkpoint !== last && checkpoint !== last - 1)
    return `at checkpoint ${checkpoint}, though ${last - 1} was confirmed`
  const bounds = checkpoints.get(checkpoint)!
  const served: Buffer[] = []
  for (const [index, name] of Object.keys(DISKS).entries()) {
    const client = await attach(secondary, name)
    const disk = Buffer.alloc(BLOCKS * BLOCK)
    await client.read(disk, 0)
    await client.disconnect()
    const violation = workloads[index]!.history.violation(disk, bounds[index]!)
    if (violation !== undefined) return `disk ${name}, checkpoint ${checkpoint}: ${violation}`
    served.push(disk)
  }
  const exit = await secondary.server.stop()
  if (exit.code !== 0) return `the promoted secondary ended with ${String(exit.code)}`
  for (const [index, name] of Object.keys(DISKS).entries()) {
    const [path, format] = [secondary.images[name]!, secondary.format]
    const objection = await imageObjection(path, format)
    if (objection !== undefined) return `the image of ${name}: ${objection}`
    const image = await imageContent(scope, path, format)
    if (!image.equals(served[index]!)) return `the image of ${name} is not what was served`
  }
  return undefined
}
