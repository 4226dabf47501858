/**
 * Arguments of control commands: a schema declared as data, and the check of what a client sent against it.
 *
 * Invariants:
 *  - check() returns only names that the schema declares, each of the declared type and within its bounds.
 *  - Every refusal names the argument, what was given, and what is allowed.
 */

import { Fault } from '../core/fault.ts'

/** The longest time that a timer of Node can wait, in milliseconds. */
export const LONGEST_MS = 2 ** 31 - 1

interface Described {
  /** For documentation and query-commands. */
  readonly meaning: string
  readonly optional?: true
}

type ArgumentSpec =
  | (Described & { readonly type: 'boolean' })
  | (Described & { readonly type: 'integer'; readonly min: number; readonly max: number })
  | (Described & { readonly type: 'string' })
  | (Described & { readonly type: 'strings' })
  | (Described & { readonly type: 'choice'; readonly of: readonly string[] })

export type ArgumentSchema = Readonly<Record<string, ArgumentSpec>>

type ValueOf<Spec extends ArgumentSpec> = Spec extends { type: 'boolean' }
  ? boolean
  : Spec extends { type: 'integer' }
    ? number
    : Spec extends { type: 'choice'; of: readonly (infer Choice)[] }
      ? Choice
      : Spec extends { type: 'strings' }
        ? readonly string[]
        : string

/** What a command's run() receives: each declared argument, undefined where it is optional and absent. */
export type ArgumentValues<Schema extends ArgumentSchema> = {
  readonly [Name in keyof Schema]: Schema[Name] extends { optional: true }
    ? ValueOf<Schema[Name]> | undefined
    : ValueOf<Schema[Name]>
}

/** @throws Fault INVALID when `given` does not fit `schema`. */
export function check<Schema extends ArgumentSchema>(
  schema: Schema,
  given: Readonly<Record<string, unknown>>,
): ArgumentValues<Schema> {
  for (const name of Object.keys(given)) {
    if (!Object.hasOwn(schema, name)) {
      throw new Fault('INVALID', `Parameter ${quote(name)} is unexpected`, {
        remedy: allowedNames(schema),
      })
    }
  }
  const values: Record<string, unknown> = {}
  for (const [name, spec] of Object.entries(schema)) {
    const value = Object.hasOwn(given, name) ? given[name] : undefined
    const wrong = objection(spec, value)
    if (wrong !== undefined) throw new Fault('INVALID', `Parameter ${quote(name)} ${wrong}`)
    values[name] = value
  }
  return values as ArgumentValues<Schema>
}

function objection(spec: ArgumentSpec, value: unknown): string | undefined {
  if (value === undefined) {
    return spec.optional === true ? undefined : `is missing: expected ${allowed(spec)}`
  }
  return fits(spec, value) ? undefined : `is ${shown(value)}: expected ${allowed(spec)}`
}

function fits(spec: ArgumentSpec, value: unknown): boolean {
  switch (spec.type) {
    case 'boolean':
      return typeof value === 'boolean'
    case 'integer':
      return Number.isSafeInteger(value) && Number(value) >= spec.min && Number(value) <= spec.max
    case 'string':
      return typeof value === 'string'
    case 'strings':
      return Array.isArray(value) && value.every((each) => typeof each === 'string')
    case 'choice':
      return spec.of.some((choice) => choice === value)
  }
}

function allowed(spec: ArgumentSpec): string {
  switch (spec.type) {
    case 'boolean':
      return 'true or false'
    case 'integer':
      return `a whole number from ${spec.min} to ${spec.max}`
    case 'string':
      return 'a string'
    case 'strings':
      return 'an array of strings'
    case 'choice':
      return spec.of.map(quote).join(' or ')
  }
}

function allowedNames(schema: ArgumentSchema): string {
  const names = Object.keys(schema)
  return names.length === 0 ? 'the command takes none' : `allowed: ${names.join(', ')}`
}

/** A client's text, cut so that an error message stays readable whatever was sent. */
export function quote(text: string): string {
  const clean = text.replaceAll(/\p{Cc}/gu, '?')
  return clean.length > 80 ? `'${clean.slice(0, 80)}…'` : `'${clean}'`
}

/** A value as a message shows it: scalars as they are, the rest by kind. */
function shown(value: unknown): string {
  if (value === null) return 'null'
  if (Array.isArray(value)) return 'an array'
  if (typeof value === 'string') return `the string ${quote(value)}`
  if (typeof value === 'number' || typeof value === 'boolean') return String(value)
  return 'an object'
}
