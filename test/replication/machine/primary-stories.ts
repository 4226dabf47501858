/** A primary's machine for its tests: what it is told, and what it does as lines of text. */

import type { Test } from 'tap'

import type { Hello, Refusal } from '../../../replication/machine/handshake.ts'
import type {
  PrimaryEffect,
  PrimaryInput,
  PrimarySettings,
} from '../../../replication/machine/primary-io.ts'
import { PrimaryMachine } from '../../../replication/machine/primary.ts'
import { FRESH, type ReplicaState } from '../../../replication/machine/replica-state.ts'
import { describeEvent, describeFrame } from './stories.ts'

const SIZE = 64 * 1024

/** A secondary that is where its primary is. */
export const SECONDARY: Hello = {
  protocol: { min: 1, max: 1 },
  group: 'vm',
  mode: 'colo',
  role: 'secondary',
  replica: 's',
  generation: 'g1',
  history: [],
  checkpoint: 0,
  announced: 0,
  consistent: true,
  wrote: false,
  term: 1,
  disks: [{ name: 'a', size: SIZE }],
  capacity: 1024 * 1024,
  durable: false,
  discard: null,
  identical: false,
  features: [],
  ack: 'sent',
}

/** A primary at the beginning of its first line. */
export const FIRST: ReplicaState = {
  ...FRESH,
  role: 'primary',
  generation: 'g1',
  wrote: true,
  announced: 0,
}

export function newMachine(
  remembered: Partial<ReplicaState> = {},
  settings: Partial<PrimarySettings> = {},
): PrimaryMachine {
  return new PrimaryMachine({
    ...{ group: 'vm', mode: 'colo', replica: 'p', disks: SECONDARY.disks },
    ...{ heartbeatMs: 100, timeoutMs: 500, shared: false, identical: false },
    ...{ onLinkLoss: 'continue', intervalMs: 0, partBytes: 1 << 26, fences: false, ack: 'sent' },
    comparesFirst: false,
    remembered: { ...FIRST, ...remembered },
    ...settings,
  })
}

export function describe(effect: PrimaryEffect): string {
  switch (effect.type) {
    case 'send':
      return `send ${describeFrame(effect.frame)}`
    case 'close-link':
      return `close: ${effect.reason}`
    case 'checkpoint-done':
      return `#${effect.request} done: ${effect.result.checkpoint}, ${effect.result.bytes} bytes, ${effect.result.pauseUs} us`
    case 'checkpoint-failed':
      return `#${effect.request} failed: ${effect.code}: ${effect.reason}`
    case 'fence':
      return `fence ${effect.peer}`
    case 'resync':
      return `${effect.copies ? 'copy' : 'resync'} ${effect.session}${effect.compares ? ', comparing' : ''}`
    case 'remember':
      return effect.type
    case 'answer':
      return `answer ${effect.refusal.code} in term ${effect.refusal.term}: ${effect.refusal.reason}`
    case 'step-down':
      return `step down: ${effect.reason}`
    case 'event':
      return describeEvent(effect.event)
  }
}

/** A write of the guest, from its start to its end; or what is given to the machine and what it does. */
export type Step =
  readonly ['write', at: number, forwarded: boolean] | readonly [PrimaryInput, readonly string[]]

export function tell(
  t: Test,
  story: string,
  machine: PrimaryMachine,
  steps: readonly Step[],
): void {
  for (const [index, step] of steps.entries()) {
    if (step[0] === 'write') {
      machine.writing(0, step[1], 512)
      t.equal(machine.written(0, step[1], 512), step[2], `${story}: step ${index}: forwarded`)
    } else t.same(machine.step(step[0]).map(describe), step[1], `${story}: step ${index}`)
  }
}

export const linkUp: PrimaryInput = { type: 'link-up', nowMs: 0, peer: 'peer' }
export const ready: PrimaryInput = { type: 'ready', nowMs: 0 }
export const hello = (fields: Partial<Hello> = {}): PrimaryInput => ({
  type: 'hello',
  nowMs: 0,
  hello: { ...SECONDARY, ...fields },
})
export const refused = (fields: Partial<Refusal>): PrimaryInput => ({
  type: 'refused',
  nowMs: 0,
  refusal: { code: 'history', reason: 'because', term: 1, ...fields },
})
export const checkpoint = (request: number, nowMs = 0, timeoutMs = 1000): PrimaryInput => ({
  type: 'checkpoint',
  request,
  nowMs,
  timeoutMs,
})
export const done = (number: number, nowMs = 0): PrimaryInput => ({
  type: 'done',
  checkpoint: number,
  commitUs: 5,
  nowMs,
})
export const tick = (nowMs: number): PrimaryInput => ({ type: 'tick', nowMs })
export const down = (reason: string): PrimaryInput => ({ type: 'link-down', reason })
export const resynced = (session: number, nowMs = 0): PrimaryInput => ({
  type: 'resynced',
  session,
  nowMs,
})

export const HEARING = 'PROTECTION resyncing: hearing what the secondary changed by itself'
export const SENDING = 'PROTECTION resyncing: sending what changed while the secondary was away'

export const GREETING: Step = [linkUp, ['send hello from p on g1 at 0/0']]
export const GREETED: Step = [hello(), ['LINK up', HEARING]]
export const CONNECTED: readonly Step[] = [
  GREETING,
  GREETED,
  [ready, ['send synced', 'PROTECTION protected']],
]

export const COPYING = 'PROTECTION resyncing: copying the disks to the secondary'
export const SETTLING = 'PROTECTION resyncing: awaiting the first checkpoint of the copy'
