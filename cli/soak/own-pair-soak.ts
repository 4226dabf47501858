/** A soak on two servers of its own: rounds of load and faults, each ended by a full comparison with the model. */

import { Fault } from '../../core/fault.ts'
import { below, seededRandom } from '../../core/seeded-random.ts'
import { FAULTS, Schedule, type FaultName, type Stage } from './faults.ts'
import { LocalPair } from './local-pair.ts'
import { Session } from './session.ts'
import type { OwnPairSettings } from './settings.ts'
import { soakDisk, type SoakDisk } from './soak-disk.ts'
import type { SoakRun } from './soak-run.ts'
import { verifyImages, verifyPair, verifyStandby, verifyTakeover } from './verification.ts'
import { Violation } from './violation.ts'

/** @param folder where the images go; the caller removes it */
export async function soakOwnPair(
  settings: OwnPairSettings,
  folder: string,
  run: SoakRun,
): Promise<void> {
  const { seed, mode, size, lanes, intervalMs } = settings
  // One stream for each purpose, so that what one of them draws does not move the others.
  const seeds = seededRandom(seed)
  const stream = (): ReturnType<typeof seededRandom> => seededRandom(below(seeds, 2 ** 32))
  const schedule = new Schedule(settings.faults, stream())
  const [random, network, guest] = [stream(), stream(), stream()]
  const disks = Array.from({ length: settings.disks }, (_, index) =>
    soakDisk(`disk${index}`, size, index, seed),
  )
  const pair = await LocalPair.make({
    ...{ folder, mode, disks, settings: settings.settings, random: network },
  })
  run.onInterrupt(() => pair.close())
  const begin = (): Promise<Session> =>
    Session.begin(pair, { disks, lanes, intervalMs, random: guest, tally: run.tally })
  let session: Session | undefined
  try {
    await pair.start()
    session = await begin()
    while (run.goesOn) {
      const kind = schedule.next()
      session.checkpointer.pauses = random() < 0.5
      const { tally } = run
      await playRound(kind, { pair, session, disks, random, tally })
      run.countRound(kind, session)
      if (FAULTS[kind].leaves === 'pair') continue
      await pair.startAnew()
      session = await begin()
    }
    await finish(pair, session, disks)
  } catch (error) {
    run.fail(violationIn(error, session !== undefined, pair.trouble) ?? error)
  } finally {
    await pair.close()
    // What it still wants to say was said above.
    await session?.end().catch(() => undefined)
  }
}

/** Once the pair has worked, a server that ends, refuses or cannot be started again has broken a promise. */
function violationIn(
  error: unknown,
  worked: boolean,
  trouble: string | undefined,
): Violation | undefined {
  if (trouble !== undefined) return new Violation(trouble)
  return worked && error instanceof Fault ? new Violation(error.message) : undefined
}

async function playRound(kind: FaultName, stage: Stage): Promise<void> {
  const { pair, session, disks, random, tally } = stage
  const { play, leaves } = FAULTS[kind]
  await play(stage)
  if (leaves === 'survivor') {
    session.checkGuests()
    await verifyTakeover(pair.mode, pair.secondary, session.log, { disks, random, tally })
    return
  }
  await verifyPair(pair, session, { disks, random, tally })
  if (pair.mode === 'remus') await verifyStandby(pair, session, { disks, random, tally })
}

/** An orderly end leaves the same on both hosts. */
async function finish(
  pair: LocalPair,
  session: Session,
  disks: readonly SoakDisk[],
): Promise<void> {
  await session.quiesce()
  await session.checkpointer.take()
  await session.end()
  await pair.primary.stop()
  await pair.secondary.stop()
  for (const host of [pair.primary, pair.secondary]) await verifyImages(host, disks)
}
