/**
 * The text of a pipeline, `driver:target?key=value&...|driver:...`, read into stages and written back.
 *
 * Invariants:
 *  - parsePipeline(formatPipeline(stages)) gives the same stages back, whatever their targets and settings contain.
 *  - The stages that parsePipeline() returns are one backend, last, under any number of layers, and use only keys that
 *    their drivers declare.
 */

import { Fault } from '../core/fault.ts'
import type { Driver, Stage } from './driver.ts'

const EXAMPLE = 'write driver:target?key=value, joined by |, such as aio:/srv/disk.img'

/** @throws Fault INVALID or NOT_FOUND that names the part that is wrong, and what would be right. */
export function parsePipeline(text: string, drivers: readonly Driver[]): Stage[] {
  const stages = parseStages(text)
  const kinds = stages.map((stage) => checkStage(stage, drivers).kind)
  const last = kinds.length - 1
  const misplaced = kinds.findIndex((kind, index) => (kind === 'backend') !== (index === last))
  if (misplaced === -1) return stages
  const name = stages[misplaced]?.driver ?? ''
  if (misplaced === last) {
    throw new Fault('INVALID', `${name} is a layer and needs a driver below it`, {
      where: text,
      remedy: `end the pipeline with one of ${names(drivers, 'backend')}`,
    })
  }
  throw new Fault('INVALID', `${name} is a backend and nothing can be below it`, {
    where: text,
    remedy: `make it the last; above it can be ${names(drivers, 'layer')}`,
  })
}

/** The syntax alone: any driver, any key. */
export function parseStages(text: string): Stage[] {
  return text.split('|').map((part) => parseStage(part.trim(), text))
}

export function formatPipeline(stages: readonly Stage[]): string {
  return stages.map(formatStage).join('|')
}

function parseStage(part: string, whole: string): Stage {
  if (part === '') {
    throw new Fault('INVALID', 'a part of the pipeline is empty', { where: whole, remedy: EXAMPLE })
  }
  const colon = part.indexOf(':')
  const driver = part.slice(0, Math.max(colon, 0))
  if (!/^[a-z][a-z0-9-]*$/.test(driver)) {
    throw new Fault('INVALID', `no driver is named at the start of "${part}"`, {
      where: whole,
      remedy: EXAMPLE,
    })
  }
  const question = part.indexOf('?', colon)
  const target = decode(part.slice(colon + 1, question === -1 ? undefined : question), whole)
  if (target === '') {
    throw new Fault('INVALID', `${driver} has no target`, { where: whole, remedy: EXAMPLE })
  }
  const query = question === -1 ? '' : part.slice(question + 1)
  return { driver, target, settings: parseSettings(driver, query, whole) }
}

function parseSettings(driver: string, query: string, whole: string): Map<string, string> {
  const settings = new Map<string, string>()
  if (query === '') return settings
  for (const pair of query.split('&')) {
    const equals = pair.indexOf('=')
    const key = decode(equals === -1 ? pair : pair.slice(0, equals), whole)
    if (key === '') {
      throw new Fault('INVALID', `${driver} has a setting without a name: "${pair}"`, {
        where: whole,
        remedy: 'write key=value, joined by &',
      })
    }
    if (settings.has(key)) {
      throw new Fault('INVALID', `${driver} has the setting ${key} twice`, {
        where: whole,
        remedy: 'give it once',
      })
    }
    settings.set(key, equals === -1 ? '' : decode(pair.slice(equals + 1), whole))
  }
  return settings
}

function checkStage(stage: Stage, drivers: readonly Driver[]): Driver {
  const driver = drivers.find(({ name }) => name === stage.driver)
  if (driver === undefined) {
    const known = drivers.map(({ name }) => name)
    throw new Fault('NOT_FOUND', `no driver is called ${stage.driver}`, {
      remedy: `${guess(stage.driver, known)}the drivers are ${known.join(', ')}`,
    })
  }
  for (const key of stage.settings.keys()) {
    if (Object.hasOwn(driver.keys, key)) continue
    const known = Object.keys(driver.keys)
    throw new Fault('INVALID', `${driver.name} has no setting ${key}`, {
      where: formatStage(stage),
      remedy:
        known.length === 0
          ? 'it has no settings at all'
          : `${guess(key, known)}its settings are ${known.join(', ')}`,
    })
  }
  return driver
}

function names(drivers: readonly Driver[], kind: Driver['kind']): string {
  return drivers
    .filter((driver) => driver.kind === kind)
    .map(({ name }) => name)
    .join(', ')
}

/** `%2F` as `/`, several of them as UTF-8. A percent sign of its own is written `%25`. */
function decode(text: string, whole: string): string {
  const malformed = (cause?: unknown): Fault =>
    new Fault('INVALID', `a percent sign starts no character in "${text}"`, {
      where: whole,
      remedy: 'write % itself as %25',
      cause,
    })
  return text.replaceAll(/%(?:[0-9a-fA-F]{2}(?:%[0-9a-fA-F]{2})*)?/g, (escapes) => {
    if (escapes === '%') throw malformed()
    try {
      return decodeURIComponent(escapes)
    } catch (cause) {
      throw malformed(cause)
    }
  })
}

function formatStage({ driver, target, settings }: Stage): string {
  const pairs = [...settings].map(([key, value]) => `${encode(key)}=${encode(value)}`)
  const query = pairs.length === 0 ? '' : `?${pairs.join('&')}`
  return `${driver}:${encode(target, false)}${query}`
}

/** Escapes what has a meaning in the syntax, and what is hard to see: white space at the ends, control characters. */
function encode(text: string, inSettings = true): string {
  const special = inSettings ? /[%|&=?]/g : /[%|&?]/g
  return text
    .replaceAll(special, percent)
    .replaceAll(/^\s+|\s+$|\p{Cc}/gu, (found) => encodeURIComponent(found))
}

function percent(character: string): string {
  return `%${character.charCodeAt(0).toString(16).toUpperCase().padStart(2, '0')}`
}

/** `did you mean remus? `, where one of `known` differs by at most two letters. */
function guess(word: string, known: readonly string[]): string {
  const near = known
    .map((candidate) => ({ candidate, distance: editDistance(word, candidate) }))
    .filter(({ candidate, distance }) => distance <= 2 && distance < candidate.length)
    .sort((a, b) => a.distance - b.distance)[0]
  return near === undefined ? '' : `did you mean ${near.candidate}? `
}

/** Insertions, deletions and replacements that turn one word into the other (Levenshtein). */
function editDistance(from: string, to: string): number {
  let row = Array.from({ length: to.length + 1 }, (_, column) => column)
  for (let index = 0; index < from.length; index += 1) {
    const next = [index + 1]
    for (let column = 1; column <= to.length; column += 1) {
      const replaced = (row[column - 1] ?? 0) + (from[index] === to[column - 1] ? 0 : 1)
      next.push(Math.min(replaced, (row[column] ?? 0) + 1, (next[column - 1] ?? 0) + 1))
    }
    row = next
  }
  return row[to.length] ?? 0
}
