/** What is said of an export, on the command line, in the configuration file or to a running server; checked. */

import { Fault } from '../core/fault.ts'
import { parseClientRule, type ClientRule } from '../nbd/access.ts'
import type { ExportConfig } from './config-file.ts'

export interface ExportSettings {
  readonly name: string
  readonly pipeline: string
  readonly description: string
  readonly readOnly: boolean
  /** Who may use it; undefined where everybody may who can connect. */
  readonly clients?: readonly ClientRule[]
}

/** The protocol's limit on a name or a description (NBD, "String values"), in bytes. */
const LONGEST_STRING = 4096

/** @throws Fault INVALID when a client could not ask for such an export */
export function exportSettings(config: ExportConfig, allReadOnly: boolean): ExportSettings {
  const { name, pipeline, description = '', readOnly = false, allow } = config
  const wrong = objectionToName(name)
  if (wrong !== undefined) {
    throw new Fault('INVALID', `an export's name ${wrong}`, { where: `${name}=${pipeline}` })
  }
  if (Buffer.byteLength(description) > LONGEST_STRING || description.includes('\0')) {
    throw new Fault('INVALID', `the description is no text of at most ${LONGEST_STRING} bytes`, {
      where: `export "${name}"`,
    })
  }
  if (allow?.length === 0) {
    throw new Fault('INVALID', 'the export allows nobody: allow is empty', {
      where: `export "${name}"`,
      remedy: 'name clients, or leave it out',
    })
  }
  const clients = allow?.map(parseClientRule)
  const settings = { name, pipeline, description, readOnly: readOnly || allReadOnly }
  return clients === undefined ? settings : { ...settings, clients }
}

/**
 * The exports with one more client for one of them, as NAME=CLIENT says. Names may have a `=` in them, as clients may: the
 * longest name that fits is meant.
 * @throws Fault INVALID when there is no such export, or it names no client
 */
export function allowing(exports: readonly ExportSettings[], text: string): ExportSettings[] {
  const meant = exports
    .filter(({ name }) => text.startsWith(`${name}=`))
    .sort((a, b) => b.name.length - a.name.length)[0]
  if (meant === undefined)
    throw new Fault('INVALID', `--allow "${text}" is not NAME=CLIENT with the name of an export`)
  const rule = parseClientRule(text.slice(meant.name.length + 1))
  const clients = [...(meant.clients ?? []), rule]
  return exports.map((each) => (each === meant ? { ...each, clients } : each))
}

function objectionToName(name: string): string | undefined {
  if (name === '') return 'must not be empty'
  if (Buffer.byteLength(name) > LONGEST_STRING) return `is longer than ${LONGEST_STRING} bytes`
  if (/\p{Cc}/u.test(name)) return 'must not contain control characters'
  return undefined
}

/** Splits NAME=PIPELINE. @returns undefined when it is nothing of the kind */
export function parseExport(text: string): ExportConfig | undefined {
  const split = text.indexOf('=')
  if (split < 0) return undefined
  return { name: text.slice(0, split), pipeline: text.slice(split + 1) }
}

/** @throws Fault INVALID when two exports have the same name */
export function refuseTwins(exports: readonly ExportSettings[]): void {
  const names = new Set<string>()
  for (const { name } of exports) {
    if (names.has(name)) {
      throw new Fault('INVALID', `two exports are named "${name}"`, {
        remedy: 'give each its own name',
      })
    }
    names.add(name)
  }
}
