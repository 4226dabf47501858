/**
 * A guest on a replicated disk loses its host, and a second one starts from the secondary: to it the disk looks as after a
 * power cut at the last checkpoint. The guest keeps a log whose records it makes durable and reports, one by one; what it
 * had reported before a checkpoint began is in the log, whole and in order.
 *
 * VM_SEED repeats the moments of a run.
 */

import { createHash } from 'node:crypto'
import { setImmediate as turn } from 'node:timers/promises'

import t, { type Test } from 'tap'

import { below, seededRandom } from '../../core/seeded-random.ts'
import { MiB } from '../../core/units.ts'
import { groupState, linkLost, startPair, type ReplicaHost } from '../support/replica-pair.ts'
import { EXT4 } from './file-systems.ts'
import { Guest, type GuestDisk } from './guest.ts'

const SEED = Number(process.env['VM_SEED'] ?? Date.now() % 1_000_000)
const SIZE = 64 * MiB

/**
 * Shell: appends records without end, each a number and a checksum over it and the record before it, and says the number
 * of each once fsync has returned. Another file grows beside it, so that checkpoints have more to carry than the log.
 */
const KEEP_LOG = `
  set +x
  before=none
  number=1
  while :; do
    sum=$(echo "$number $before" | sha256sum); sum=\${sum%% *}
    echo "$number $sum" | dd of=/mnt/log oflag=append conv=notrunc,fsync 2>/dev/null
    say $number
    head -c 20000 /dev/urandom >>/mnt/beside
    before=$sum
    number=$((number + 1))
  done
`

/** What a disk may hold whose content is that of a checkpoint: records up to a number between the two. */
interface Bounds {
  readonly atLeast: number
  readonly atMost: number
}

/** The records that a guest has reported, and those who wait for some. */
class LogKeeper {
  reported = 0
  #awaited: { readonly number: number; readonly resolve: () => void } | undefined

  constructor(guest: Guest) {
    guest.onSay = (text) => {
      this.reported = Number(text)
      if (this.#awaited !== undefined && this.reported >= this.#awaited.number)
        this.#awaited.resolve()
    }
  }

  /** Resolves when `more` records have been reported from now on. */
  further(more: number): Promise<void> {
    return new Promise((resolve) => {
      this.#awaited = { number: this.reported + more, resolve }
    })
  }
}

async function boundedCheckpoint(primary: ReplicaHost, keeper: LogKeeper): Promise<Bounds> {
  const atLeast = keeper.reported
  await primary.qmp.execute('replication-checkpoint')
  // Reports that came before the answer may be read after it; one record may be on the disk and not reported yet.
  await turn()
  await turn()
  return { atLeast, atMost: keeper.reported + 1 }
}

function diskOf({ server }: ReplicaHost): GuestDisk {
  return { socket: server.socket, exportName: 'disk' }
}

/** What is known of a primary and its guest when both have died. */
interface Life {
  /** The number of the last checkpoint that was confirmed. */
  readonly confirmed: number
  readonly inConfirmed: Bounds
  /** What the checkpoint after that one holds, should it have been committed. */
  readonly inNext: Bounds
}

/** Checkpoints while the guest works, then the death of all that is on the primary's host. */
async function liveAndDie(
  t: Test,
  primary: ReplicaHost,
  guest: Guest,
  seed: number,
): Promise<Life> {
  const random = seededRandom(seed)
  await guest.run(`${EXT4.make('/dev/vda')}; mount /dev/vda /mnt`)
  const keeper = new LogKeeper(guest)
  const working = guest.run(KEEP_LOG)
  working.catch(() => undefined)
  let inConfirmed: Bounds = { atLeast: 0, atMost: 0 }
  for (let checkpoints = 2 + below(random, 4); checkpoints > 0; checkpoints -= 1) {
    await Promise.race([keeper.further(1 + below(random, 12)), working])
    inConfirmed = await boundedCheckpoint(primary, keeper)
  }
  const { checkpoint: confirmed } = await groupState(primary.qmp)
  await Promise.race([keeper.further(2 + below(random, 12)), working])
  const atLeast = keeper.reported
  // Half of the time a checkpoint is under way: it may count or not, and the secondary knows.
  if (random() < 0.5) boundedCheckpoint(primary, keeper).catch(() => undefined)
  guest.child.signal('SIGKILL')
  primary.server.child.signal('SIGKILL')
  await Promise.all([guest.child.end(), primary.server.child.end()])
  await t.rejects(working, /ended/, 'all that it reported is known')
  return { confirmed, inConfirmed, inNext: { atLeast, atMost: keeper.reported + 1 } }
}

/** @returns the number of the log's last record; throws where a record is torn, missing or out of order */
function lastRecord(log: string): number {
  let before = 'none'
  const lines = log.split('\n')
  if (lines.pop() !== '') throw new Error('the last record has no end')
  for (const [index, line] of lines.entries()) {
    const number = index + 1
    const sum = createHash('sha256').update(`${number} ${before}\n`).digest('hex')
    if (line !== `${number} ${sum}`) throw new Error(`record ${number} is "${line}"`)
    before = sum
  }
  return lines.length
}

for (const [index, mode] of (['colo', 'colo', 'remus'] as const).entries()) {
  const seed = SEED + index
  const name = `a guest's log survives the death of its host (${mode}, case ${index + 1})`
  void t.test(name, { timeout: 1_800_000 }, async (t: Test) => {
    t.comment(`repeat it with VM_SEED=${SEED}`)
    const { primary, secondary } = await startPair(t, { mode, disks: { disk: SIZE } })
    const guest = await Guest.start(t, { disks: [diskOf(primary)] })
    const { confirmed, inConfirmed, inNext } = await liveAndDie(t, primary, guest, seed)

    await linkLost(secondary.qmp)
    await secondary.qmp.execute('replication-promote')
    const state = await groupState(secondary.qmp)
    t.equal(state.role, 'active')
    t.ok([confirmed, confirmed + 1].includes(state.checkpoint), `checkpoint ${state.checkpoint}`)
    const { atLeast, atMost } = state.checkpoint === confirmed ? inConfirmed : inNext

    const second = await Guest.start(t, { disks: [diskOf(secondary)] })
    const log = await second.run('mount /dev/vda /mnt; cat /mnt/log')
    const last = lastRecord(log)
    t.ok(last >= atLeast, `${last} records, ${atLeast} reported before the checkpoint`)
    t.ok(last <= atMost, `${last} records, no more than ${atMost} before the checkpoint ended`)
    await second.run(`
      echo more >>/mnt/log; cat /mnt/beside >/dev/null; umount /mnt
      ${EXT4.check('/dev/vda')}`)
    await second.powerOff()
    const { code } = await secondary.server.stop()
    t.equal(code, 0)
  })
}
