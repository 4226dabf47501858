/**
 * The promise that everything else serves: kill the primary at any moment, and the secondary is exactly at its last
 * acknowledged checkpoint, or at the one that was under way, all disks of the group at the same one.
 *
 * KILL_ROUNDS and KILL_SEED choose how many moments and which ones.
 */

import { readFile } from 'node:fs/promises'
import t from 'tap'
import { NbdClient } from '../../nbd/client.ts'
import { BlockHistory, type Bounds } from '../support/block-history.ts'
import { ProgramScope } from '../support/scope.ts'
import { below, seededRandom, type Random } from '../support/random.ts'
import {
  groupState,
  linkLost,
  startPair,
  type ReplicaHost,
  type ReplicaPair,
} from '../support/replica-pair.ts'

const ROUNDS = Number(process.env['KILL_ROUNDS'] ?? 200)
const FIRST_SEED = Number(process.env['KILL_SEED'] ?? Date.now() % 1_000_000)
const AT_A_TIME = 2
const BLOCK = 4096
const BLOCKS = 512
const DISKS = ['root', 'data'] as const
const LANES = 8

type Checkpoints = Map<number, readonly Bounds[]>

/** One disk of the primary with its writers. */
class Workload {
  readonly history = new BlockHistory(BLOCKS, BLOCK)
  readonly #client: NbdClient
  readonly #random: Random
  #writes = 0
  #gate: Promise<void> | undefined
  #onWrite: (writes: number) => void

  constructor(client: NbdClient, random: Random, onWrite: (writes: number) => void) {
    this.#client = client
    this.#random = random
    this.#onWrite = onWrite
  }

  /** Writes until the disk is gone. */
  async run(): Promise<void> {
    await Promise.all(Array.from({ length: LANES }, () => this.#lane()))
  }

  /** Lets no new write begin until `done` resolves: a paused guest. */
  pause(done: Promise<void>): void {
    this.#gate = done
  }

  abandon(): void {
    this.#client.abandon()
  }

  async #lane(): Promise<void> {
    for (;;) {
      await this.#gate
      const block = this.#idleBlock()
      try {
        await this.#write(block)
      } catch {
        return
      }
      this.history.acknowledge(block)
      this.#writes += 1
      this.#onWrite(this.#writes)
    }
  }

  #idleBlock(): number {
    for (;;) {
      const block = below(this.#random, BLOCKS)
      if (this.history.idle(block)) return block
    }
  }

  #write(block: number): Promise<void> {
    const kind = this.#random()
    const content = this.history.issue(block, kind < 0.15)
    if (content !== undefined) return this.#client.write(content, block * BLOCK)
    if (kind < 0.08) return this.#client.zero(block * BLOCK, BLOCK)
    return this.#client.trim(block * BLOCK, BLOCK)
  }
}

async function round(seed: number): Promise<string | undefined> {
  const scope = new ProgramScope()
  const random = seededRandom(seed)
  const mode = random() < 0.5 ? 'colo' : 'remus'
  try {
    const pair = await startPair(scope, {
      mode,
      disks: { root: BLOCKS * BLOCK, data: BLOCKS * BLOCK },
    })
    const { checkpoints, workloads } = await loadAndKill(pair, random)
    await linkLost(pair.secondary.qmp)
    await pair.secondary.qmp.execute('replication-promote')
    return await judge(pair.secondary, checkpoints, workloads)
  } finally {
    await scope.end()
  }
}

async function attach(host: ReplicaHost, name: string): Promise<NbdClient> {
  return NbdClient.connect({
    address: { kind: 'unix', path: host.server.socket },
    exportName: name,
  })
}

/** Writes and takes checkpoints until the write that the seed chose, then kills. */
async function loadAndKill(
  { primary }: ReplicaPair,
  random: Random,
): Promise<{ checkpoints: Checkpoints; workloads: Workload[] }> {
  const deadAfter = 1 + below(random, 1500)
  const pauses = random() < 0.5
  let killed = false
  const kill = (writes: number): void => {
    if (writes < deadAfter || killed) return
    killed = true
    primary.server.child.signal('SIGKILL')
  }
  const workloads: Workload[] = []
  for (const name of DISKS) {
    const client = await attach(primary, name)
    workloads.push(new Workload(client, seededRandom(below(random, 2 ** 32)), kill))
  }
  const running = workloads.map((workload) => workload.run())
  const checkpoints = await takeCheckpoints(primary, workloads, pauses)
  await primary.server.child.end()
  for (const workload of workloads) workload.abandon()
  await Promise.all(running)
  return { checkpoints, workloads }
}

/** @returns what each checkpoint may hold, by number, the one under way at the end included */
async function takeCheckpoints(
  primary: ReplicaHost,
  workloads: readonly Workload[],
  pauses: boolean,
): Promise<Checkpoints> {
  const empty = workloads.map(({ history }) => ({
    acknowledged: history.acknowledged(),
    issued: new Uint32Array(history.blocks),
  }))
  for (const { acknowledged } of empty) acknowledged.fill(0)
  const checkpoints: Checkpoints = new Map([[0, empty]])
  for (let number = 1; ; number += 1) {
    let resume: () => void = () => undefined
    if (pauses) {
      const gate = new Promise<void>((resolve) => (resume = resolve))
      for (const workload of workloads) workload.pause(gate)
    }
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
    resume()
    checkpoints.set(confirmed === 0 ? number : confirmed, bounds)
    if (confirmed === 0) return checkpoints
    if (confirmed !== number)
      throw new Error(`checkpoint ${confirmed} was confirmed, ${number} was expected`)
  }
}

/** @returns what is wrong with the promoted secondary */
async function judge(
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
  for (const [index, name] of DISKS.entries()) {
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
  for (const [index, name] of DISKS.entries()) {
    const image = await readFile(secondary.images[name]!)
    if (!image.equals(served[index]!)) return `the image of ${name} is not what was served`
  }
  return undefined
}

void t.test(
  `a primary killed at ${ROUNDS} random moments leaves exactly a checkpoint`,
  { timeout: 1_800_000 },
  async (t) => {
    const seeds = Array.from({ length: ROUNDS }, (_, index) => FIRST_SEED + index)
    t.comment(
      `seeds ${FIRST_SEED} to ${FIRST_SEED + ROUNDS - 1}; repeat one with KILL_ROUNDS=1 KILL_SEED=<seed>`,
    )
    const violations: string[] = []
    let finished = 0
    const lane = async (): Promise<void> => {
      for (let seed = seeds.shift(); seed !== undefined; seed = seeds.shift()) {
        const violation = await round(seed)
        finished += 1
        if (violation !== undefined) violations.push(`seed ${seed}: ${violation}`)
      }
    }
    await Promise.all(Array.from({ length: AT_A_TIME }, lane))
    t.same(violations, [])
    t.equal(finished, ROUNDS)
  },
)
