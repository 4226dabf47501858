/**
 * Reads JSON from strangers field by field: what is not what it should be is a Fault that names the field.
 */

import { Fault } from '../../core/fault.ts'

/** Bytes. A hello with hundreds of disks fits easily. */
const MAX_JSON = 64 * 1024

export type Fields = Readonly<Record<string, unknown>>

/** @throws Fault PROTOCOL when the payload is not a JSON object of a sane size */
export function parseFields(payload: Buffer, what: string): Fields {
  if (payload.length > MAX_JSON) throw malformed(what)
  let value: unknown
  try {
    value = JSON.parse(payload.toString('utf8'))
  } catch {
    throw malformed(what)
  }
  return objectOf(value, what)
}

export function objectOf(value: unknown, what: string): Fields {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) throw malformed(what)
  return value as Fields
}

export function textOf(value: unknown, what: string): string {
  if (typeof value !== 'string' || value.length === 0 || value.length > 4096) throw malformed(what)
  return value
}

export function wholeOf(value: unknown, what: string): number {
  if (typeof value !== 'number' || !Number.isSafeInteger(value) || value < 0) throw malformed(what)
  return value
}

export function flagOf(value: unknown, what: string): boolean {
  if (typeof value !== 'boolean') throw malformed(what)
  return value
}

export function oneOf<T extends string>(value: unknown, allowed: readonly T[], what: string): T {
  const found = allowed.find((candidate) => candidate === value)
  if (found === undefined) throw malformed(what)
  return found
}

export function malformed(what: string): Fault {
  return new Fault('PROTOCOL', `malformed ${what}`)
}
