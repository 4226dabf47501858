/** A soak on two servers that run already: load, checkpoints and comparison; what else happens to them is their owner's. */

import { Fault } from '../../core/fault.ts'
import { below, seededRandom } from '../../core/seeded-random.ts'
import { MiB } from '../../core/units.ts'
import type { GroupStatus } from '../../replication/group.ts'
import { Session, type Sides } from './session.ts'
import type { Endpoint, GivenPairSettings } from './settings.ts'
import { attach, GroupControl, type Side } from './side.ts'
import { examineServed, soakDisk, type SoakDisk } from './soak-disk.ts'
import type { SoakRun } from './soak-run.ts'
import { demand, verifyPair } from './verification.ts'

/** Writes of a round: at least one, and less than this. */
const ROUND_WRITES = 2000

/** @throws Fault when the two are not a pair that can be tested */
export async function soakGivenPair(settings: GivenPairSettings, run: SoakRun): Promise<void> {
  const primary = await side('primary', settings.primary, settings.group)
  const secondary = await side('secondary', settings.secondary, settings.group).catch(
    async (error: unknown) => {
      await primary.control.close()
      throw error
    },
  )
  run.onInterrupt(async () => {
    await Promise.all([primary.control.close(), secondary.control.close()])
  })
  let session: Session | undefined
  try {
    const status = await checkPair(primary, secondary, settings.promote)
    const sides = { mode: status.mode, primary, secondary }
    const disks = await emptyDisks(primary, status, settings)
    const random = seededRandom(settings.seed)
    const { lanes, intervalMs } = settings
    const { tally } = run
    const guest = seededRandom(below(random, 2 ** 32))
    session = await Session.begin(sides, { disks, lanes, intervalMs, tally, random: guest })
    while (run.goesOn) {
      session.checkpointer.pauses = random() < 0.5
      await session.guests.after(1 + below(random, ROUND_WRITES))
      await verifyPair(sides, session, { disks, random, tally })
      run.countRound('quiet', session)
    }
    await finish(sides, session, disks, settings.promote)
  } catch (error) {
    run.fail(error)
  } finally {
    await session?.end().catch(() => undefined)
    await primary.control.close()
    await secondary.control.close()
  }
}

async function side(
  name: 'primary' | 'secondary',
  { nbd, control }: Endpoint,
  group: string | undefined,
): Promise<Side> {
  return { name, nbd, control: await GroupControl.connect(control, group) }
}

async function checkPair(primary: Side, secondary: Side, promote: boolean): Promise<GroupStatus> {
  const [status, other] = [await primary.control.status(), await secondary.control.status()]
  for (const [{ name }, { role }] of [
    [primary, status],
    [secondary, other],
  ] as const)
    if (role !== name)
      throw new Fault('INVALID', `what was given as the ${name} is ${role}`, {
        where: `group ${status.group}`,
        remedy: `name the control socket of the ${name}`,
      })
  if (status.protection !== 'protected')
    throw new Fault('NOT_PERMITTED', `the pair is ${status.protection}`, {
      where: `group ${status.group}`,
      remedy: 'let it become protected first: see colotap status',
    })
  if (status.mode === 'remus' && !promote)
    throw new Fault('NOT_SUPPORTED', 'a Remus secondary shows nothing before it is promoted', {
      where: `group ${status.group}`,
      remedy: 'allow the soak to promote it at the end: --promote',
    })
  return status
}

/** The model begins with empty blocks, so the part of each disk that is tested is emptied first. */
async function emptyDisks(
  primary: Side,
  status: GroupStatus,
  { size, seed }: GivenPairSettings,
): Promise<SoakDisk[]> {
  const disks: SoakDisk[] = []
  for (const [index, { name, size: whole }] of status.disks.entries()) {
    const tested = Math.min(size, Math.floor(whole / MiB) * MiB)
    if (tested === 0)
      throw new Fault('INVALID', 'the disk is smaller than 1 MiB', { where: `disk ${name}` })
    disks.push(soakDisk(name, tested, index, seed))
    const client = await attach(primary, name)
    for (let at = 0; at < tested; at += MiB) await client.zero(at, MiB)
    await client.disconnect()
  }
  await primary.control.checkpoint()
  return disks
}

async function finish(
  sides: Sides,
  session: Session,
  disks: readonly SoakDisk[],
  promote: boolean,
): Promise<void> {
  await session.quiesce()
  await session.checkpointer.take()
  await session.end()
  if (!promote) return
  await sides.secondary.control.promote(true)
  const exactly = disks.map(({ history }) => history.exactly)
  demand(await examineServed(sides.secondary, disks, exactly))
}
