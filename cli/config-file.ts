/**
 * The configuration file of `colotap serve`: TOML that says the same as the flags. docs/cli.md is its reference.
 *
 * Invariant: what is not understood is an error with the key and the file; nothing is skipped.
 */

import { readFile } from 'node:fs/promises'

import { parse, TomlError } from 'smol-toml'

import { asFault, Fault } from '../core/fault.ts'
import { closest } from './closest.ts'

export interface ExportConfig {
  readonly name: string
  readonly pipeline: string
  readonly description?: string
  readonly readOnly?: boolean
  readonly allow?: readonly string[] | undefined
}

/** Each field is absent where the file does not say it. */
export interface ServeConfig {
  readonly exports: readonly ExportConfig[]
  readonly listen: readonly string[]
  readonly control?: string
  readonly stateDir?: string
  readonly blktap2Dir?: string
  readonly logLevel?: string
  readonly readOnly?: boolean
  readonly insecure?: boolean
  readonly maxConnections?: number
  readonly handshakeTimeoutMs?: number
  readonly idleTimeoutMs?: number
}

const KEYS = {
  listen: 'array',
  control: 'string',
  'state-dir': 'string',
  'blktap2-dir': 'string',
  'log-level': 'string',
  'read-only': 'boolean',
  insecure: 'boolean',
  'max-connections': 'number',
  'handshake-timeout-ms': 'number',
  'idle-timeout-ms': 'number',
  export: 'array',
} as const

const EXPORT_KEYS = {
  name: 'string',
  pipeline: 'string',
  description: 'string',
  'read-only': 'boolean',
  allow: 'array',
} as const

type Kind = 'string' | 'boolean' | 'number' | 'array'
type Kinds = Readonly<Record<string, Kind>>
type ValueOf<K extends Kind> = K extends 'string'
  ? string
  : K extends 'boolean'
    ? boolean
    : K extends 'number'
      ? number
      : unknown[]
type Checked<K extends Kinds> = { readonly [Key in keyof K]?: ValueOf<K[Key]> }

/** @throws Fault when the file cannot be read, is no TOML, or says what is not understood. */
export async function readConfig(path: string): Promise<ServeConfig> {
  let text: string
  try {
    text = await readFile(path, 'utf8')
  } catch (error) {
    throw asFault(error, 'NOT_FOUND', 'cannot read the configuration file', { where: path })
  }
  return parseConfig(text, path)
}

/** @param path for messages */
export function parseConfig(text: string, path: string): ServeConfig {
  const top = check(parseToml(text, path), KEYS, path)
  const exports = (top.export ?? []).map((each, index) => parseExport(each, index, path))
  const listen = strings('listen', top.listen ?? [], path)
  return {
    exports,
    listen,
    ...present('control', top.control),
    ...present('stateDir', top['state-dir']),
    ...present('blktap2Dir', top['blktap2-dir']),
    ...present('logLevel', top['log-level']),
    ...present('readOnly', top['read-only']),
    ...present('insecure', top.insecure),
    ...present('maxConnections', top['max-connections']),
    ...present('handshakeTimeoutMs', top['handshake-timeout-ms']),
    ...present('idleTimeoutMs', top['idle-timeout-ms']),
  }
}

function parseExport(value: unknown, index: number, path: string): ExportConfig {
  const where = `${path}, export ${index + 1}`
  const checked = check(value, EXPORT_KEYS, where)
  const { name, pipeline, description, 'read-only': readOnly, allow } = checked
  if (name === undefined) throw wrong(where, 'name is missing')
  if (pipeline === undefined) throw wrong(where, 'pipeline is missing')
  return {
    name,
    pipeline,
    ...present('description', description),
    ...present('readOnly', readOnly),
    ...present('allow', allow && strings('allow', allow, where)),
  }
}

function strings(key: string, values: readonly unknown[], where: string): string[] {
  return values.map((each) => {
    if (typeof each !== 'string') throw wrong(where, `every entry of ${key} must be a string`)
    return each
  })
}

function parseToml(text: string, path: string): unknown {
  try {
    return parse(text)
  } catch (error) {
    if (!(error instanceof TomlError)) throw error
    const [what = ''] = error.message.split('\n')
    throw new Fault('INVALID', what, { where: `${path}:${error.line}:${error.column}` })
  }
}

function check<K extends Kinds>(value: unknown, kinds: K, where: string): Checked<K> {
  if (typeof value !== 'object' || value === null) throw wrong(where, 'must be a table')
  for (const [key, entry] of Object.entries(value)) {
    const kind = Object.hasOwn(kinds, key) ? kinds[key] : undefined
    if (kind === undefined) {
      const meant = closest(key, Object.keys(kinds))
      const known = Object.keys(kinds).join(', ')
      throw new Fault('INVALID', `unknown key "${key}"`, {
        where,
        remedy:
          meant === undefined ? `known: ${known}` : `did you mean "${meant}"? known: ${known}`,
      })
    }
    const fits = kind === 'array' ? Array.isArray(entry) : typeof entry === kind
    if (!fits) throw wrong(where, `${key} must be ${kind === 'array' ? 'an array' : `a ${kind}`}`)
  }
  return value
}

function wrong(where: string, what: string): Fault {
  return new Fault('INVALID', what, { where, remedy: 'see docs/cli.md, configuration file' })
}

function present<Key extends string, Value>(
  key: Key,
  value: Value | undefined,
): Partial<Record<Key, Value>> {
  return (value === undefined ? {} : { [key]: value }) as Partial<Record<Key, Value>>
}
