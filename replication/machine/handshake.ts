/**
 * The hello that both sides of a link send first, and the verdict that both reach from the two hellos.
 *
 * Invariants:
 *  - The verdict is one function of both hellos, so both sides always reach the same one.
 *  - A hello comes from a stranger: every field is checked before it is used.
 *  - A pair whose histories cannot be shown to fit is refused, never assumed to be equal.
 */

import type { GroupMode, GroupRole } from '../group.ts'
import { flagOf, malformed, objectOf, oneOf, parseFields, textOf, wholeOf } from './fields.ts'

/** Versions of the link protocol that this build speaks. */
export const PROTOCOL = { min: 1, max: 1 } as const

export interface DiskIdentity {
  readonly name: string
  /** Bytes. */
  readonly size: number
}

export interface Hello {
  readonly protocol: { readonly min: number; readonly max: number }
  readonly group: string
  readonly mode: GroupMode
  readonly role: GroupRole
  /** Of what this side remembers: the process's where that is memory, the journal's where there is one. */
  readonly incarnation: string
  /** The peer's incarnation with which this side has exchanged data, if any. */
  readonly partner: string | null
  /** Last committed checkpoint known to this side. */
  readonly checkpoint: number
  /** Last checkpoint that this side has announced or heard announced: never below `checkpoint`. */
  readonly announced: number
  readonly term: number
  /** In the order in which frames number them. */
  readonly disks: readonly DiskIdentity[]
  /** Bytes of one epoch that this side can hold (secondary); 0 on a primary. */
  readonly capacity: number
  /** Whether this side's checkpoints survive its crash (secondary). */
  readonly durable: boolean
}

/** `unready`: what is wrong is the secondary's alone, and may heal. */
export type RefusalCode =
  'version' | 'configuration' | 'history' | 'deposed' | 'overflow' | 'unready'

export interface Refusal {
  readonly code: RefusalCode
  readonly reason: string
  /** The refuser's term: a primary that reads a higher one than its own is deposed. */
  readonly term: number
}

/** Why these two must not replicate, or undefined when they may. Tests run in this order; the first one decides. */
export function objection(primary: Hello, secondary: Hello): Omit<Refusal, 'term'> | undefined {
  return (
    versionObjection(primary, secondary) ??
    configurationObjection(primary, secondary) ??
    historyObjection(primary, secondary)
  )
}

function versionObjection(primary: Hello, secondary: Hello): Omit<Refusal, 'term'> | undefined {
  const version = Math.min(primary.protocol.max, secondary.protocol.max)
  if (version >= primary.protocol.min && version >= secondary.protocol.min) return undefined
  const range = (hello: Hello): string => `${hello.protocol.min}-${hello.protocol.max}`
  const reason = `no common protocol version: the primary speaks ${range(primary)}, the secondary ${range(secondary)}`
  return { code: 'version', reason }
}

function configurationObjection(
  primary: Hello,
  secondary: Hello,
): Omit<Refusal, 'term'> | undefined {
  const refuse = (reason: string): Omit<Refusal, 'term'> => ({ code: 'configuration', reason })
  if (primary.group !== secondary.group)
    return refuse(`the groups differ: primary "${primary.group}", secondary "${secondary.group}"`)
  if (primary.mode !== secondary.mode)
    return refuse(`the modes differ: primary ${primary.mode}, secondary ${secondary.mode}`)
  if (primary.role !== 'primary')
    return refuse(`the connecting side is ${primary.role}, not a primary`)
  if (secondary.role === 'primary') return refuse('both sides are primaries')
  const theirs = new Map(secondary.disks.map((disk) => [disk.name, disk.size]))
  for (const { name, size } of primary.disks) {
    const other = theirs.get(name)
    if (other === undefined) return refuse(`disk "${name}" exists only on the primary`)
    if (other !== size)
      return refuse(`disk "${name}" has ${size} bytes on the primary and ${other} on the secondary`)
    theirs.delete(name)
  }
  for (const name of theirs.keys()) return refuse(`disk "${name}" exists only on the secondary`)
  return undefined
}

function historyObjection(primary: Hello, secondary: Hello): Omit<Refusal, 'term'> | undefined {
  if (secondary.role === 'active')
    return { code: 'deposed', reason: 'the secondary was promoted and is the active copy' }
  if (secondary.term > primary.term)
    return { code: 'deposed', reason: 'the secondary has seen a newer primary' }
  const refuse = (reason: string): Omit<Refusal, 'term'> => ({ code: 'history', reason })
  if (secondary.partner !== null && secondary.partner !== primary.incarnation) {
    return refuse(
      "the primary was restarted, so what it changed since the last checkpoint is not known; start the pair anew from identical images, with the folder of the secondary's journal moved away",
    )
  }
  if (primary.partner !== null && primary.partner !== secondary.incarnation) {
    return refuse('the secondary was restarted, so the checkpoints that it held in memory are lost')
  }
  if (secondary.checkpoint < primary.checkpoint) {
    return refuse(
      `the secondary is at checkpoint ${secondary.checkpoint}, before ${primary.checkpoint}, which it had committed`,
    )
  }
  if (secondary.checkpoint > primary.announced) {
    return refuse(
      `the secondary is at checkpoint ${secondary.checkpoint}, which this primary never announced`,
    )
  }
  return undefined
}

export function encodeHello(hello: Hello): Buffer {
  return Buffer.from(JSON.stringify(hello))
}

/** @throws Fault PROTOCOL naming the field that is wrong */
export function decodeHello(payload: Buffer): Hello {
  const fields = parseFields(payload, 'hello')
  const protocol = objectOf(fields['protocol'], 'hello.protocol')
  const disks = fields['disks']
  if (!Array.isArray(disks) || disks.length === 0 || disks.length > 0xffff)
    throw malformed('hello.disks')
  return {
    protocol: {
      min: wholeOf(protocol['min'], 'hello.protocol.min'),
      max: wholeOf(protocol['max'], 'hello.protocol.max'),
    },
    group: textOf(fields['group'], 'hello.group'),
    mode: oneOf(fields['mode'], ['colo', 'remus'], 'hello.mode'),
    role: oneOf(fields['role'], ['primary', 'secondary', 'active'], 'hello.role'),
    incarnation: textOf(fields['incarnation'], 'hello.incarnation'),
    partner: fields['partner'] === null ? null : textOf(fields['partner'], 'hello.partner'),
    checkpoint: wholeOf(fields['checkpoint'], 'hello.checkpoint'),
    announced: wholeOf(fields['announced'], 'hello.announced'),
    term: wholeOf(fields['term'], 'hello.term'),
    disks: disks.map((disk: unknown) => {
      const { name, size } = objectOf(disk, 'hello.disks')
      return { name: textOf(name, 'hello.disks.name'), size: wholeOf(size, 'hello.disks.size') }
    }),
    capacity: wholeOf(fields['capacity'], 'hello.capacity'),
    durable: flagOf(fields['durable'], 'hello.durable'),
  }
}

export function encodeRefusal(refusal: Refusal): Buffer {
  return Buffer.from(JSON.stringify(refusal))
}

/** @throws Fault PROTOCOL naming the field that is wrong */
export function decodeRefusal(payload: Buffer): Refusal {
  const fields = parseFields(payload, 'refusal')
  return {
    code: oneOf(
      fields['code'],
      ['version', 'configuration', 'history', 'deposed', 'overflow', 'unready'],
      'refusal.code',
    ),
    reason: textOf(fields['reason'], 'refusal.reason'),
    term: wholeOf(fields['term'], 'refusal.term'),
  }
}
