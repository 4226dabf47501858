/**
 * Command lines: options declared as data, read strictly, and described by the same data in --help.
 *
 * Invariants:
 *  - Nothing on the command line is ignored: what is not understood is a usage error that names the likely meaning.
 *  - An option that does not repeat is given at most once.
 */

import { parseArgs } from 'node:util'

import { closest } from './closest.ts'

export interface OptionSpec {
  /** What stands for the value in --help; without it the option is a switch. */
  readonly value?: string
  /** A letter that stands for the option, after one dash. */
  readonly letter?: string
  /** May be given any number of times. */
  readonly repeats?: true
  readonly meaning: string
}

export type OptionTable = Readonly<Record<string, OptionSpec>>

/** What a subcommand may use of the world. */
export interface Terminal {
  /** Prints to standard output, with a line feed. */
  print(text: string): void
  readonly env: Readonly<Record<string, string | undefined>>
  readonly uid: number
  readonly pid: number
  /** Shows how far long work is, on one line that the next call replaces; undefined where nobody watches. */
  readonly progress?: ((line: string) => void) | undefined
  /** Shows a text in place of all that is on the screen; undefined where there is none. */
  readonly screen?: ((text: string) => void) | undefined
}

export interface Subcommand {
  /** With the command that it belongs to before it, where there is one: `image create`. */
  readonly name: string
  /** One line for the list of subcommands. */
  readonly summary: string
  /** The positional arguments, such as GROUP: each word is one, and optional. */
  readonly positional?: string
  readonly options: OptionTable
  /** Paragraphs under the options in --help. */
  readonly notes?: string
  /** @returns when it is done; @throws UsageError or Fault */
  run(given: Given, terminal: Terminal): Promise<void>
}

/** The command line is wrong: exit 2. */
export class UsageError extends Error {
  override readonly name = 'UsageError'
}

/** What was given, by option name. */
export class Given {
  readonly positional: string | undefined
  /** Behind the first one. */
  readonly second: string | undefined
  readonly #values: ReadonlyMap<string, readonly string[]>

  constructor(
    values: ReadonlyMap<string, readonly string[]>,
    positional?: string,
    second?: string,
  ) {
    this.#values = values
    this.positional = positional
    this.second = second
  }

  has(option: string): boolean {
    return this.#values.has(option)
  }

  /** The value of an option that does not repeat. */
  value(option: string): string | undefined {
    return this.#values.get(option)?.[0]
  }

  values(option: string): readonly string[] {
    return this.#values.get(option) ?? []
  }
}

const HELP: OptionSpec = { meaning: 'show this help' }

/** @throws UsageError */
export function parse(command: Subcommand, args: readonly string[]): Given | 'help' {
  const table: OptionTable = { ...command.options, help: HELP }
  const kinds = Object.entries(table).map(
    ([name, { value, letter }]) =>
      [
        name,
        {
          type: value === undefined ? 'boolean' : 'string',
          multiple: true,
          ...(letter === undefined ? {} : { short: letter }),
        },
      ] as const,
  )
  const { tokens } = parseArgs({
    args: args.map((arg) => (arg === '-h' ? '--help' : arg)),
    options: Object.fromEntries(kinds),
    strict: false, // the errors below say more
    tokens: true,
    allowPositionals: true,
  })
  if (tokens.some((token) => token.kind === 'option' && token.name === 'help')) return 'help'
  const values = new Map<string, string[]>()
  const positionals: string[] = []
  for (const token of tokens) {
    if (token.kind === 'positional') positionals.push(token.value)
    if (token.kind !== 'option') continue
    const value = valueOf(command, table, token)
    const list = values.get(token.name) ?? []
    if (list.length > 0 && table[token.name]?.repeats !== true) {
      throw usageError(command, `${token.rawName} is given twice`)
    }
    values.set(token.name, [...list, value])
  }
  const extra = positionals[namesOf(command).length]
  if (extra !== undefined) throw usageError(command, `unexpected argument "${extra}"`)
  return new Given(values, ...(positionals as [string?, string?]))
}

/** Of its positional arguments. */
function namesOf({ positional }: Subcommand): readonly string[] {
  return positional === undefined ? [] : positional.split(' ')
}

interface OptionToken {
  readonly name: string
  readonly rawName: string
  readonly value: string | undefined
  readonly inlineValue: boolean | undefined
}

function valueOf(command: Subcommand, table: OptionTable, token: OptionToken): string {
  const spec = Object.hasOwn(table, token.name) ? table[token.name] : undefined
  const { rawName, value } = token
  if (spec === undefined) {
    const meant = closest(token.name, Object.keys(table))
    const hint = meant === undefined ? '' : `, did you mean --${meant}?`
    throw usageError(command, `unknown option ${rawName}${hint}`)
  }
  if (spec.value === undefined) {
    if (value !== undefined) throw usageError(command, `${rawName} takes no value`)
    return ''
  }
  if (
    value === undefined ||
    value === '' ||
    (token.inlineValue !== true && value.startsWith('-'))
  ) {
    throw usageError(command, `${rawName} needs a value: ${rawName} ${spec.value}`)
  }
  return value
}

export function usageError({ name }: Subcommand, what: string): UsageError {
  return new UsageError(`${what} (see: colotap ${name} --help)`)
}

/** The text of `colotap NAME --help`. */
export function helpOf(command: Subcommand): string {
  const { name, summary, options, notes } = command
  const rows = Object.entries({ ...options, help: HELP }).map(([option, spec]) => {
    const letter = spec.letter === undefined ? '' : `-${spec.letter}, `
    const form = `${letter}--${option}${spec.value === undefined ? '' : ` ${spec.value}`}`
    return [form, spec.meaning + (spec.repeats === true ? '; may be repeated' : '')] as const
  })
  const positionals = namesOf(command)
    .map((each) => ` [${each}]`)
    .join('')
  const usage = `usage: colotap ${name} [OPTIONS]${positionals}`
  const parts = [`${usage}\n\n${summary}`, columns(rows), ...(notes === undefined ? [] : [notes])]
  return parts.join('\n\n')
}

/** Two columns, the first as wide as it needs to be. */
export function columns(rows: readonly (readonly [string, string])[]): string {
  const width = Math.max(...rows.map(([left]) => left.length))
  return rows.map(([left, right]) => `  ${left.padEnd(width)}  ${right}`).join('\n')
}
