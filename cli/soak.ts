/**
 * `colotap soak`: proves a pair under load and faults, for as long as one likes.
 *
 * Invariants:
 *  - It ends with a report and 0, or with a report and 1 where anything was found or it did not come to its end.
 *  - No process, socket or file is left, however it ends, except images in which a violation was found, which are evidence.
 */

import { tmpdir } from 'node:os'
import path from 'node:path'

import fs from 'fs-extra'

import { Fault } from '../core/fault.ts'
import { columns, type Given, type Subcommand, type Terminal } from './command-line.ts'
import { FAULTS } from './soak/faults.ts'
import { soakGivenPair } from './soak/given-pair-soak.ts'
import { soakOwnPair } from './soak/own-pair-soak.ts'
import { reportJson, reportText, roundText, type Outcome } from './soak/report.ts'
import {
  givenPairSettings,
  ownPairSettings,
  type GivenPairSettings,
  type OwnPairSettings,
} from './soak/settings.ts'
import { SoakRun } from './soak/soak-run.ts'

const NOTES = `Without --primary it starts a pair of its own on this machine. A round is load, a fault, and the comparison of both
sides with a model. All faults in turn by default; --faults names some of them:

${columns(Object.entries(FAULTS).map(([name, { meaning }]) => [name, meaning] as const))}

With --primary and --secondary, each unix:PATH,CONTROL or tcp:HOST:PORT,CONTROL, the pair is one that runs already. The first
--size bytes of every disk of its group are overwritten. docs/soak.md says what is checked.`

export const soak: Subcommand = {
  name: 'soak',
  summary: 'test replication: load, checkpoints, kills and cuts, and the comparison of both sides',
  options: {
    rounds: { value: 'N', meaning: 'end after so many rounds (default 20)' },
    seconds: { value: 'S', meaning: 'end with the first round that is over after so long' },
    seed: { value: 'N', meaning: 'repeat the choices of an earlier run' },
    interval: { value: 'MS', meaning: 'a checkpoint every so many milliseconds (default 20)' },
    faults: { value: 'KIND,...', meaning: 'all, none, or some of those below' },
    mode: { value: 'colo|remus', meaning: 'how the pair replicates (default colo)' },
    disks: { value: 'N', meaning: 'disks of the group (default 2)' },
    size: { value: 'SIZE', meaning: 'bytes of each disk that are used (default 8M)' },
    depth: { value: 'N', meaning: 'requests in flight on each disk (default 8)' },
    set: {
      value: 'KEY=VALUE',
      repeats: true,
      meaning: 'a setting of the pipelines, such as memory=64M',
    },
    dir: { value: 'DIR', meaning: 'where the images go (default: a temporary directory)' },
    keep: { meaning: 'keep the images and say where they are' },
    json: { meaning: 'print the report alone, for programs' },
    primary: { value: 'NBD,CONTROL', meaning: 'a primary that runs already' },
    secondary: { value: 'NBD,CONTROL', meaning: 'its secondary' },
    group: { value: 'NAME', meaning: 'their group, where they have several' },
    overwrite: { meaning: 'their disks may be overwritten' },
    promote: { meaning: 'promote the secondary at the end, and check what it serves then' },
  },
  notes: NOTES,
  run,
}

async function run(given: Given, terminal: Terminal): Promise<void> {
  const seed = Math.floor(Math.random() * 2 ** 32)
  const settings = given.has('primary')
    ? givenPairSettings(given, seed)
    : ownPairSettings(given, seed)
  const json = given.has('json')
  const course = new SoakRun({
    rounds: settings.rounds,
    seconds: settings.seconds,
    onRound: (kind) => {
      if (!json && !process.stderr.isTTY) terminal.print(roundText(kind, course.tally))
    },
  })
  if (!json) terminal.print(`seed ${settings.seed}`)
  const end = (): void => void course.interrupt()
  const signals = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const
  for (const signal of signals) process.on(signal, end)
  const hideProgress = showProgress(course, json)
  try {
    if ('primary' in settings) await soakGivenPair(settings, course)
    else await inFolder(given, terminal, course, settings)
  } finally {
    hideProgress()
    for (const signal of signals) process.off(signal, end)
  }
  conclude(course, settings, terminal, json)
}

async function inFolder(
  given: Given,
  terminal: Terminal,
  course: SoakRun,
  settings: OwnPairSettings,
): Promise<void> {
  const parent = path.resolve(given.value('dir') ?? tmpdir())
  const folder = await fs.mkdtemp(path.join(parent, 'colotap-soak-'))
  try {
    await soakOwnPair(settings, folder, course)
  } finally {
    if (given.has('keep') || course.tally.violations.length > 0) course.evidence = folder
    else await fs.remove(folder)
  }
  if (given.has('keep') && !given.has('json')) terminal.print(`Images: ${folder}`)
}

/** @throws Fault unless it came to its end and found nothing */
function conclude(
  course: SoakRun,
  { seed }: OwnPairSettings | GivenPairSettings,
  terminal: Terminal,
  json: boolean,
): void {
  const { tally, elapsedMs, finished, failure } = course
  const outcome: Outcome = { seed, tally, elapsedMs, finished }
  terminal.print(json ? reportJson(outcome) : reportText(outcome))
  if (tally.violations.length > 0)
    throw new Fault('IO', `the soak found a violation: ${tally.violations[0] ?? ''}`, {
      ...(course.evidence === undefined ? {} : { where: `images in ${course.evidence}` }),
      remedy: `repeat its choices with --seed ${seed}`,
    })
  if (failure instanceof Error) throw failure
  if (!finished)
    throw new Fault(
      'SHUTDOWN',
      'the soak was interrupted before its end; it had found no violation',
    )
}

/** A line that changes in place, for people at a terminal. @returns what takes it away */
function showProgress(course: SoakRun, json: boolean): () => void {
  if (json || !process.stderr.isTTY) return () => undefined
  const clear = '\r\x1b[K'
  const show = (): void => {
    const { finishedRounds, pause, guests } = course.tally
    const seconds = (course.elapsedMs / 1000).toFixed(0)
    process.stderr.write(
      `${clear}${seconds} s: ${finishedRounds} rounds, ${guests.writes} writes, ${pause.count} checkpoints, no violation`,
    )
  }
  const timer = setInterval(show, 500)
  return () => {
    clearInterval(timer)
    process.stderr.write(clear)
  }
}
