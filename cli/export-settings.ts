/** What is said of an export, on the command line, in the configuration file or to a running server; checked. */

import { Fault } from '../core/fault.ts'
import type { ExportConfig } from './config-file.ts'

export interface ExportSettings {
  readonly name: string
  readonly pipeline: string
  readonly description: string
  readonly readOnly: boolean
}

/** The protocol's limit on a name or a description (NBD, "String values"), in bytes. */
const LONGEST_STRING = 4096

/** @throws Fault INVALID when a client could not ask for such an export */
export function exportSettings(config: ExportConfig, allReadOnly: boolean): ExportSettings {
  const { name, pipeline, description = '', readOnly = false } = config
  const wrong = objectionToName(name)
  if (wrong !== undefined) {
    throw new Fault('INVALID', `an export's name ${wrong}`, { where: `${name}=${pipeline}` })
  }
  if (Buffer.byteLength(description) > LONGEST_STRING || description.includes('\0')) {
    throw new Fault('INVALID', `the description is no text of at most ${LONGEST_STRING} bytes`, {
      where: `export "${name}"`,
    })
  }
  return { name, pipeline, description, readOnly: readOnly || allReadOnly }
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
