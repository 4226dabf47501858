/** A secondary's machine for its tests: what it is told, and what it does as lines of text. */

import type { Test } from 'tap'

import type { CongestionSign } from '../../../replication/machine/congestion.ts'
import type { Hello } from '../../../replication/machine/handshake.ts'
import { FRESH, type ReplicaState } from '../../../replication/machine/replica-state.ts'
import type { SecondaryEffect, SecondaryInput } from '../../../replication/machine/secondary-io.ts'
import { SecondaryMachine } from '../../../replication/machine/secondary.ts'
import { describeEvent, describeFrame } from './stories.ts'

export const DISKS = [
  { name: 'a', size: 4096 },
  { name: 'b', size: 8192 },
]

/** A primary that has just begun its line. */
const PRIMARY: Hello = {
  protocol: { min: 1, max: 1 },
  group: 'vm',
  mode: 'colo',
  role: 'primary',
  replica: 'p',
  generation: 'g1',
  history: [],
  checkpoint: 0,
  announced: 0,
  consistent: true,
  wrote: true,
  term: 1,
  disks: DISKS,
  capacity: 0,
  durable: false,
  discard: null,
  identical: false,
  features: [],
  ack: 'sent',
}

/** A secondary that is where its primary is. */
export function newMachine(remembered: Partial<ReplicaState> = {}): SecondaryMachine {
  return new SecondaryMachine({
    ...{ group: 'vm', mode: 'colo', replica: 's', disks: DISKS },
    ...{ capacity: 1000, durable: true, fences: false, heartbeatMs: 100, timeoutMs: 500 },
    remembered: { ...FRESH, generation: 'g1', ...remembered },
  })
}

/** `primary of g1+g2 at 5 in term 2`: the line and those before it; `!` marks a mixture, `*` one that tells what it changed. */
function describeState({
  role,
  generation,
  history,
  checkpoint,
  term,
  ...is
}: ReplicaState): string {
  const line = [...history.map((fork) => fork.generation), generation ?? 'nothing'].join('+')
  const marks = `${is.consistent ? '' : '!'}${is.wrote ? '*' : ''}`
  return `${role} of ${line} at ${checkpoint} in term ${term}${marks}`
}

export function describe(effect: SecondaryEffect): string {
  switch (effect.type) {
    case 'fence':
      return `fence ${effect.peer}`
    case 'send':
      return `${effect.link}: send ${describeFrame(effect.frame)}`
    case 'close-link':
      return `${effect.link}: close: ${effect.reason}`
    case 'tell-changes':
      return `${effect.link}: tell changes`
    case 'discard':
    case 'activate':
    case 'restart-log':
    case 'forget-changes':
      return effect.type
    case 'remember':
      return `remember ${describeState(effect.state)}`
    case 'commit':
      return `commit ${effect.checkpoint} as ${describeState(effect.state)}`
    case 'promoted':
      return `#${effect.request} promoted`
    case 'promote-refused':
      return `#${effect.request} not promoted: ${effect.reason}`
    case 'checkpoint-done':
      return `#${effect.request} done: ${effect.result.checkpoint}, ${effect.result.bytes} bytes`
    case 'checkpoint-failed':
      return `#${effect.request} failed: ${effect.code}: ${effect.reason}`
    case 'event':
      return describeEvent(effect.event)
  }
}

export type Step = readonly [SecondaryInput, readonly string[]]

export function tell(
  t: Test,
  story: string,
  machine: SecondaryMachine,
  steps: readonly Step[],
): void {
  for (const [index, [input, effects]] of steps.entries())
    t.same(machine.step(input).map(describe), effects, `${story}: step ${index}`)
}

export const hello = (link: number, fields: Partial<Hello> = {}): SecondaryInput => ({
  type: 'hello',
  nowMs: 0,
  link,
  peer: 'peer',
  hello: { ...PRIMARY, ...fields },
})
export const marker = (
  checkpoint: number,
  link = 1,
  partial = false,
  asked = !partial,
): SecondaryInput => ({
  type: 'checkpoint',
  nowMs: 0,
  link,
  checkpoint,
  partial,
  asked,
})
export const committed = (checkpoint: number): SecondaryInput => ({
  type: 'committed',
  checkpoint,
  commitUs: 5,
})
export const awaitCheckpoint = (request: number, timeoutMs = 1000): SecondaryInput => ({
  type: 'await-checkpoint',
  nowMs: 0,
  request,
  timeoutMs,
})
export const promote = (request: number, force = false): SecondaryInput => ({
  type: 'promote',
  request,
  force,
  generation: `p${request}`,
})
export const tick = (nowMs: number): SecondaryInput => ({ type: 'tick', nowMs })
export const down = (link: number): SecondaryInput => ({ type: 'link-down', link, reason: 'cut' })
export const held = (
  bytes: number,
  waiting?: Partial<CongestionSign & { spilledBytes: number }>,
): SecondaryInput => ({
  ...{ type: 'held', bytes, spilledBytes: 0, nowMs: 0, held: false, progress: 0 },
  ...waiting,
})
export const synced = (link = 1): SecondaryInput => ({ type: 'synced', link, nowMs: 0 })
export const REMEMBERED: SecondaryInput = { type: 'remembered' }

export const RESYNCING = 'PROTECTION resyncing'
export const PROTECTED = 'PROTECTION protected'
/** What a hello on a link is answered with by a secondary at a checkpoint. */
export const greeting = (link: number, at = '0/0'): readonly string[] => [
  `${link}: send hello from s on g1 at ${at}`,
  `${link}: tell changes`,
  'LINK up',
  RESYNCING,
]
export const CONNECTED: readonly Step[] = [
  [hello(1), greeting(1)],
  [synced(), [PROTECTED]],
]
/** The same while a commit is under way, after which it is told. */
export const LOST_IN_COMMIT: Step = [down(1), ['discard', 'PROTECTION unprotected: cut']]
export const LOST: Step = [down(1), ['discard', 'LINK down: cut', 'PROTECTION unprotected: cut']]
export const PROMOTED: readonly string[] = [
  'activate',
  'ROLE active in term 2',
  '#1 promoted',
  'PROTECTION unprotected: active without a secondary',
]
export const IS_ACTIVE = 'the secondary was promoted and is the active copy'
