/**
 * What a driver is: a named way to make a block device, either of something outside (a backend) or of the device
 * below it (a layer), with typed readers for the settings that users write after `?` in a pipeline.
 *
 * Invariants:
 *  - A stage that reaches open() names keys that the driver declares, and no others (drivers/pipeline.ts checks it).
 *  - `below` is given to layers and only to them.
 *  - A layer's device owns the device below it from the moment that open() resolves: closing the layer closes both.
 *    While open() has not resolved, and when it fails, the device below stays the caller's to close.
 */

import { Fault } from '../core/fault.ts'
import { assert } from '../core/assert.ts'
import type { BlockDevice } from '../core/block-device.ts'
import type { Logger } from '../core/logger.ts'
import { formatSize, parseSize } from '../core/units.ts'

/** A setting that a driver understands, described for error messages and for the documentation. */
export interface SettingDescription {
  /** One line: what the setting decides. */
  readonly meaning: string
  /** What may be written, such as `on|off` or `1-64`. */
  readonly values?: string
}

export interface Driver {
  /** As users write it before the colon. */
  readonly name: string
  /** A backend ends a pipeline; a layer stands on another driver. */
  readonly kind: 'backend' | 'layer'
  /** What the target is, for error messages: `path of a file or block device`. */
  readonly target: string
  readonly keys: Readonly<Record<string, SettingDescription>>
  /** It lives as long as its export: what is below it can be exchanged at run time, itself and what is above cannot. */
  readonly stays?: true
  /** @throws Fault when the device cannot be opened; then nothing that open() itself acquired stays open. */
  open(stage: Stage, below: BlockDevice | undefined, context: OpenContext): Promise<BlockDevice>
}

/** One `driver:target?key=value&...` of a pipeline, decoded. */
export interface Stage {
  readonly driver: string
  readonly target: string
  readonly settings: ReadonlyMap<string, string>
}

/** What a driver may know and use about the export that it is opened for. */
export interface OpenContext {
  readonly exportName: string
  readonly readOnly: boolean
  readonly logger: Logger
  /** What leaves this machine need not be encrypted. */
  readonly insecure?: boolean
  /** Joins the disk `below` to its replication group; the device that results is the replicated disk. */
  attachReplica(stage: Stage, mode: 'colo' | 'remus', below: BlockDevice): Promise<BlockDevice>
}

/** The device below a layer. Its absence is a bug of whoever opens pipelines. */
export function deviceBelow(below: BlockDevice | undefined): BlockDevice {
  assert(below !== undefined, 'a layer is opened over the device below it')
  return below
}

/** `on` or `off` (also `true`/`false`, `yes`/`no`, `1`/`0`, and a bare key, which means on). */
export function booleanSetting(stage: Stage, key: string, otherwise: boolean): boolean {
  const text = stage.settings.get(key)
  if (text === undefined) return otherwise
  switch (text.toLowerCase()) {
    case '':
    case 'on':
    case 'true':
    case 'yes':
    case '1':
      return true
    case 'off':
    case 'false':
    case 'no':
    case '0':
      return false
    default:
      throw badSetting(stage, key, text, 'on or off')
  }
}

/** A whole decimal number from `least` to `most`, both included. */
export function integerSetting(
  stage: Stage,
  key: string,
  range: { readonly least: number; readonly most: number },
  otherwise: number,
): number {
  const text = stage.settings.get(key)
  if (text === undefined) return otherwise
  const value = /^\d+$/.test(text) ? Number(text) : Number.NaN
  if (!Number.isSafeInteger(value) || value < range.least || value > range.most) {
    throw badSetting(stage, key, text, `a whole number from ${range.least} to ${range.most}`)
  }
  return value
}

/** A size such as `64K` or `10G`, in bytes, from `least` to `most`, both included. */
export function sizeSetting(
  stage: Stage,
  key: string,
  range: { readonly least: number; readonly most: number },
  otherwise: number,
): number {
  const text = stage.settings.get(key)
  if (text === undefined) return otherwise
  const valid = `a size from ${formatSize(range.least)} to ${formatSize(range.most)}, such as 64K`
  let value: number
  try {
    value = parseSize(text)
  } catch (error) {
    throw badSetting(stage, key, text, valid, error)
  }
  if (value < range.least || value > range.most) throw badSetting(stage, key, text, valid)
  return value
}

/** A number from 0 to 1, both included, such as `0.01`. */
export function fractionSetting(stage: Stage, key: string, otherwise: number): number {
  const text = stage.settings.get(key)
  if (text === undefined) return otherwise
  const value = /^(?:\d+|\d*\.\d+)$/.test(text) ? Number(text) : Number.NaN
  if (!(value <= 1)) throw badSetting(stage, key, text, 'a number from 0 to 1, such as 0.01')
  return value
}

/** One of a few words. */
export function choiceSetting<const Choice extends string>(
  stage: Stage,
  key: string,
  choices: readonly Choice[],
  otherwise: NoInfer<Choice>,
): Choice {
  const text = stage.settings.get(key)
  if (text === undefined) return otherwise
  const choice = choices.find((candidate) => candidate === text)
  if (choice === undefined) {
    throw badSetting(stage, key, text, choices.join(' or '))
  }
  return choice
}

function badSetting(
  stage: Stage,
  key: string,
  text: string,
  valid: string,
  cause?: unknown,
): Fault {
  return new Fault('INVALID', `${stage.driver}: ${key}=${text} is not valid`, {
    where: `${stage.driver}:${stage.target}`,
    remedy: `give ${key} ${valid}`,
    cause,
  })
}
