/** The comparison of a pair with the model: while it is alive, and after its primary was lost. */

import { randomBytes } from 'node:crypto'

import { below, type Random } from '../../core/seeded-random.ts'
import type { Bounds } from './block-history.ts'
import type { CheckpointLog } from './checkpoint-log.ts'
import type { LocalHost } from './local-host.ts'
import type { LocalPair } from './local-pair.ts'
import type { Session, Sides } from './session.ts'
import { attach, type Side } from './side.ts'
import { examineImage, examineServed, type SoakDisk } from './soak-disk.ts'
import type { Tally } from './tally.ts'
import { Violation } from './violation.ts'

/** Blocks that the secondary's own guest writes to each disk. */
const OWN_WRITES = 8

export interface Context {
  readonly disks: readonly SoakDisk[]
  readonly random: Random
  readonly tally: Tally
}

/** @throws Violation with all of them, if there are any */
export function demand(violations: readonly string[]): void {
  if (violations.length > 0) throw new Violation(violations.join('; '))
}

/**
 * Both sides of a protected pair, with its guest paused: the secondary shows the last checkpoint and nothing newer, takes
 * writes of its own guest, and shows exactly what the primary has after one more checkpoint. The guest goes on afterwards.
 */
export async function verifyPair(sides: Sides, session: Session, context: Context): Promise<void> {
  const { disks, random, tally } = context
  const resume = await session.quiesce()
  if (sides.mode === 'colo') {
    await verifyCheckpoint(sides.secondary, session.log, disks)
    await writeForeign(sides.secondary, disks, random)
  }
  await session.checkpointer.take()
  const exactly = disks.map(({ history }) => history.exactly)
  demand(await examineServed(sides.primary, disks, exactly, true))
  if (sides.mode === 'colo') demand(await examineServed(sides.secondary, disks, exactly))
  countCompared(tally, disks, sides.mode === 'colo' ? 2 : 1)
  resume()
}

/** A Remus secondary shows nothing, so it is ended in order, its images are read, and it comes back. */
export async function verifyStandby(
  pair: LocalPair,
  session: Session,
  { disks, tally }: Context,
): Promise<void> {
  const resume = await session.quiesce()
  await session.checkpointer.take()
  const losses = pair.primary.control.losses
  await pair.secondary.stop()
  await verifyImages(pair.secondary, disks)
  countCompared(tally, disks, 1)
  await pair.primary.control.linkLost(losses)
  await pair.secondary.startAgain()
  await pair.protection()
  resume()
}

/** The images of a host that has ended hold exactly what was acknowledged. */
export async function verifyImages(host: LocalHost, disks: readonly SoakDisk[]): Promise<void> {
  for (const disk of disks)
    demand(await examineImage(host.image(disk.name), disk, disk.history.exactly))
}

/** What the secondary's guest sees is a checkpoint that was asked for, and not an older one than was reported. */
export async function verifyCheckpoint(
  secondary: Side,
  log: CheckpointLog,
  disks: readonly SoakDisk[],
): Promise<void> {
  const { checkpoint } = await secondary.control.status()
  const bounds = log.boundsOf(checkpoint)
  if (typeof bounds === 'string') throw new Violation(`${secondary.name}: ${bounds}`)
  demand(await examineServed(secondary, disks, bounds))
}

/**
 * The primary is lost. Promotes the secondary, and proves that it is exactly at a checkpoint, with what its own guest wrote
 * since; that it takes writes; and that its images hold the same after an orderly end. Both hosts are at rest afterwards.
 */
export async function verifyTakeover(
  mode: 'colo' | 'remus',
  secondary: LocalHost,
  log: CheckpointLog,
  { disks, random, tally }: Context,
): Promise<void> {
  const own = mode === 'colo' ? await writeOwn(secondary, disks, random) : disks.map(() => [])
  const startedMs = performance.now()
  const { role, checkpoint } = await secondary.control.promote(false)
  await readFirst(secondary, disks)
  tally.takeover.add((performance.now() - startedMs) * 1000)
  if (role !== 'active') throw new Violation(`the promoted ${secondary.name} host is ${role}`)
  const allowed = log.boundsOf(checkpoint)
  if (typeof allowed === 'string') throw new Violation(`the promoted ${secondary.name}: ${allowed}`)
  const bounds = allowed.map((each, index) => withOwn(each, own[index] ?? [], disks[index]))
  demand(await examineServed(secondary, disks, bounds, true))
  await writeOn(secondary, disks, random)
  demand(
    await examineServed(
      secondary,
      disks,
      disks.map(({ history }) => history.exactly),
    ),
  )
  await secondary.stop()
  await verifyImages(secondary, disks)
  countCompared(tally, disks, 3)
}

function countCompared(tally: Tally, disks: readonly SoakDisk[], times: number): void {
  tally.compared += times * disks.reduce((sum, { size }) => sum + size, 0)
}

/** The secondary's guest writes what no model knows: the next checkpoint has to take it away. */
async function writeForeign(
  secondary: Side,
  disks: readonly SoakDisk[],
  random: Random,
): Promise<void> {
  for (const { name, history } of disks) {
    const client = await attach(secondary, name)
    const written = randomBytes(history.blockSize)
    const found = Buffer.alloc(history.blockSize)
    for (let count = 0; count < OWN_WRITES; count += 1) {
      const at = below(random, history.blocks) * history.blockSize
      await client.write(written, at)
      await client.read(found, at)
      if (!found.equals(written))
        throw new Violation(
          `${secondary.name}, disk ${name}: its own guest does not read back what it wrote at ${at}`,
        )
    }
    await client.disconnect()
  }
}

/** The secondary's guest writes what has to survive the takeover. @returns the blocks, by disk */
async function writeOwn(
  secondary: Side,
  disks: readonly SoakDisk[],
  random: Random,
): Promise<number[][]> {
  const blocks = disks.map(({ used }) =>
    Array.from({ length: OWN_WRITES }, () => below(random, used)),
  )
  await writeBlocks(secondary, disks, blocks)
  return blocks
}

/** A promoted disk takes writes and makes them last. */
async function writeOn(active: Side, disks: readonly SoakDisk[], random: Random): Promise<void> {
  await writeOwn(active, disks, random)
}

async function writeBlocks(
  side: Side,
  disks: readonly SoakDisk[],
  blocks: readonly (readonly number[])[],
): Promise<void> {
  for (const [index, { name, history }] of disks.entries()) {
    const client = await attach(side, name)
    for (const block of blocks[index] ?? []) {
      const content = history.issue(block, 1, false)
      if (content !== undefined) await client.write(content, block * history.blockSize)
      history.acknowledge(block, 1)
    }
    await client.flush()
    await client.disconnect()
  }
}

/** The same bounds, except that of these blocks only the newest write is allowed. */
function withOwn(bounds: Bounds, blocks: readonly number[], disk: SoakDisk | undefined): Bounds {
  const acknowledged = bounds.acknowledged.slice()
  const issued = bounds.issued.slice()
  for (const block of blocks) {
    const newest = disk?.history.exactly.acknowledged[block] ?? 0
    acknowledged[block] = newest
    issued[block] = newest
  }
  return { acknowledged, issued }
}

async function readFirst(side: Side, disks: readonly SoakDisk[]): Promise<void> {
  const [disk] = disks
  if (disk === undefined) return
  const client = await attach(side, disk.name)
  await client.read(Buffer.alloc(disk.history.blockSize), 0)
  await client.disconnect()
}
