/** What a soak is told on the command line, checked. Pure. */

import { Fault } from '../../core/fault.ts'
import { KiB, MiB, parseSize } from '../../core/units.ts'
import { parseListenAddress, type ListenAddress } from '../../nbd/address.ts'
import type { Given } from '../command-line.ts'
import { FAULT_NAMES, FAULTS, type FaultName } from './faults.ts'

export interface LoadSettings {
  readonly seed: number
  /** Ends after so many rounds; undefined: when the time is over. */
  readonly rounds: number | undefined
  readonly seconds: number | undefined
  /** Milliseconds from one checkpoint to the next. */
  readonly intervalMs: number
  /** Requests in flight on each disk. */
  readonly lanes: number
  /** Bytes of each disk that are under test. */
  readonly size: number
}

/** Two servers that the soak starts itself. */
export interface OwnPairSettings extends LoadSettings {
  readonly mode: 'colo' | 'remus'
  readonly disks: number
  readonly faults: readonly FaultName[]
  /** Further settings of the pipelines. */
  readonly settings: readonly string[]
}

export interface Endpoint {
  readonly nbd: ListenAddress
  readonly control: string
}

/** Two servers that run already. */
export interface GivenPairSettings extends LoadSettings {
  readonly primary: Endpoint
  readonly secondary: Endpoint
  readonly group: string | undefined
  /** Whether to promote the secondary at the end. */
  readonly promote: boolean
}

const ROUNDS = 20
const OWN_ONLY = ['mode', 'disks', 'faults', 'set', 'dir', 'keep'] as const
const GIVEN_ONLY = ['secondary', 'group', 'overwrite', 'promote'] as const

/** A silence counts as death sooner than by default, so that a round need not last long. */
const QUICK = ['heartbeat=100', 'timeout=1000'] as const

/** @throws Fault INVALID */
export function ownPairSettings(given: Given, seed: number): OwnPairSettings {
  const stray = GIVEN_ONLY.find((option) => given.has(option))
  if (stray !== undefined)
    throw invalid(`--${stray} is for a pair that runs already`, 'give --primary and --secondary')
  const settings = [...withDefaults(given.values('set'))]
  const faults = faultsOf(given.value('faults') ?? 'all', settings)
  return {
    ...loadSettings(given, seed),
    mode: choice(given.value('mode') ?? 'colo'),
    disks: whole(given, 'disks', 2, { least: 1, most: 16 }),
    faults,
    settings,
  }
}

/** @throws Fault INVALID */
export function givenPairSettings(given: Given, seed: number): GivenPairSettings {
  const stray = OWN_ONLY.find((option) => given.has(option))
  if (stray !== undefined)
    throw invalid(`--${stray} is for a pair that the soak starts itself`, 'leave it out')
  if (!given.has('overwrite'))
    throw invalid('a soak overwrites the disks of the group', 'say that you mean it: --overwrite')
  return {
    ...loadSettings(given, seed),
    primary: endpoint(given, 'primary'),
    secondary: endpoint(given, 'secondary'),
    group: given.value('group'),
    promote: given.has('promote'),
  }
}

function loadSettings(given: Given, random: number): LoadSettings {
  const timed = given.has('seconds')
  if (timed && given.has('rounds'))
    throw invalid('--rounds and --seconds both say when to end', 'leave one of them out')
  const size = parseSize(given.value('size') ?? '8M')
  if (size < MiB || size % MiB !== 0 || size > 64 * KiB * MiB)
    throw invalid(`--size ${given.value('size') ?? ''}`, 'give 1M to 64G in whole MiB')
  return {
    seed: whole(given, 'seed', random, { least: 0, most: 2 ** 32 - 1 }),
    rounds: timed ? undefined : whole(given, 'rounds', ROUNDS, { least: 1, most: 1e9 }),
    seconds: timed ? whole(given, 'seconds', 0, { least: 1, most: 1e9 }) : undefined,
    intervalMs: whole(given, 'interval', 20, { least: 1, most: 3_600_000 }),
    lanes: whole(given, 'depth', 8, { least: 1, most: 16 }),
    size,
  }
}

function faultsOf(text: string, settings: readonly string[]): FaultName[] {
  const inMemory = settings.includes('durability=memory')
  const possible = FAULT_NAMES.filter((name) => !inMemory || !needsJournal(name))
  if (text === 'all') return possible
  if (text === 'none') return ['quiet']
  return text.split(',').map((name) => {
    const known = FAULT_NAMES.find((candidate) => candidate === name)
    if (known === undefined)
      throw invalid(
        `--faults: there is no fault "${name}"`,
        `choose all, none, or some of ${FAULT_NAMES.join(',')}`,
      )
    if (!possible.includes(known))
      throw invalid(
        `--faults ${name} with durability=memory: checkpoints in memory die with the secondary`,
        'leave one of them out',
      )
    return known
  })
}

function needsJournal(name: FaultName): boolean {
  return 'needsJournal' in FAULTS[name]
}

/** The keys that are given, and the quick ones that they do not replace. */
function withDefaults(given: readonly string[]): readonly string[] {
  const keys = given.map((setting) => {
    const key = /^([a-z]+)=[^|&?]+$/.exec(setting)?.[1]
    if (key === undefined) throw invalid(`--set ${setting}`, 'write KEY=VALUE, such as memory=64M')
    return key
  })
  const taken = keys.find((key) => key === 'role' || key === 'group')
  if (taken !== undefined) throw invalid(`--set ${taken}=`, 'the soak sets this key itself')
  const defaults = QUICK.filter((setting) => !keys.includes(setting.slice(0, setting.indexOf('='))))
  return [...defaults, ...given]
}

function endpoint(given: Given, option: 'primary' | 'secondary'): Endpoint {
  const text = given.value(option)
  const comma = text?.lastIndexOf(',') ?? -1
  if (text === undefined || comma < 0 || comma === text.length - 1)
    throw invalid(
      `--${option} ${text ?? 'is missing'}`,
      `write --${option} unix:PATH,CONTROL or tcp:HOST:PORT,CONTROL, where CONTROL is the path of its control socket`,
    )
  return { nbd: parseListenAddress(text.slice(0, comma)), control: text.slice(comma + 1) }
}

function choice(text: string): 'colo' | 'remus' {
  if (text === 'colo' || text === 'remus') return text
  throw invalid(`--mode ${text}`, 'choose colo or remus')
}

function whole(
  given: Given,
  option: string,
  otherwise: number,
  { least, most }: { readonly least: number; readonly most: number },
): number {
  const text = given.value(option)
  if (text === undefined) return otherwise
  const value = /^\d{1,15}$/.test(text) ? Number(text) : Number.NaN
  if (value >= least && value <= most) return value
  throw invalid(`--${option} ${text}`, `give a whole number from ${least} to ${most}`)
}

function invalid(what: string, remedy: string): Fault {
  return new Fault('INVALID', what, { remedy })
}
