/**
 * What `colotap serve` is to do: its flags and its configuration file, made one and checked.
 * Lists of the two add up; for everything else the flag wins.
 */

import { Fault } from '../core/fault.ts'
import { parseListenSpec, type ListenPlace } from '../nbd/listen-place.ts'
import type { ServerLimits } from '../nbd/server.ts'
import { usageError, type Given, type Subcommand, type Terminal } from './command-line.ts'
import type { ExportConfig, ServeConfig } from './config-file.ts'
import { defaultControlPath } from './control-socket.ts'
import {
  allowing,
  exportSettings,
  parseExport,
  refuseTwins,
  type ExportSettings,
} from './export-settings.ts'
import { listenPlaces, refuseExposure, refuseUnreachable } from './listen-settings.ts'
import { defaultStateDir } from './state-dir.ts'
import { inheritedSockets } from './systemd.ts'

export const LOG_LEVELS = ['debug', 'info', 'warn', 'error', 'silent'] as const
export type LogLevel = (typeof LOG_LEVELS)[number]

export interface ServeSettings {
  readonly exports: readonly ExportSettings[]
  /** Whether no client may write to any export, those included that are added later. */
  readonly readOnly: boolean
  readonly listen: readonly ListenPlace[]
  /** What was said of the limits on NBD clients. */
  readonly limits: Partial<ServerLimits>
  readonly control: string
  /** The folder below which each group that needs one has a folder of its own. */
  readonly stateDir: string
  /** Where toolstacks made for blktap2 look for checkpoint sockets; undefined where none are wanted. */
  readonly blktap2Dir: string | undefined
  readonly logLevel: LogLevel
  /** Whether addresses beyond loopback are allowed without encryption. */
  readonly insecure: boolean
}

/** A day: longer than anybody waits for a client. */
const LONGEST_MS = 86_400_000
/** More would leave each client less memory than its smallest request takes. */
const MOST_CONNECTIONS = 10_000

/** @throws UsageError or Fault */
export function settingsOf(
  command: Subcommand,
  given: Given,
  config: ServeConfig,
  terminal: Terminal,
): ServeSettings {
  const readOnly = given.has('read-only') || config.readOnly === true
  const insecure = given.has('insecure') || config.insecure === true
  // What is wrong with a flag is a wrong command line; the same in the file is not.
  const own = [
    ...config.exports.map((each) => exportSettings(each, readOnly)),
    ...given
      .values('export')
      .map((text) => ofFlag(command, () => exportSettings(ofExportFlag(command, text), readOnly))),
  ]
  const exports = given
    .values('allow')
    .reduce((all, text) => ofFlag(command, () => allowing(all, text)), own)
  const specs = [
    ...config.listen.map(parseListenSpec),
    ...given.values('listen').map((text) => ofFlag(command, () => parseListenSpec(text))),
  ]
  const level = given.value('log-level')
  if (exports.length === 0) {
    throw usageError(command, 'nothing to serve: give --export NAME=PIPELINE or --config FILE')
  }
  if (specs.length === 0) {
    throw usageError(command, 'nowhere to serve: give --listen unix:PATH or --listen tcp:HOST:PORT')
  }
  refuseTwins(exports)
  const listen = listenPlaces(specs, inheritedSockets(terminal.env, terminal.pid))
  for (const { name, clients } of exports)
    if (clients !== undefined) refuseUnreachable(name, clients, listen)
  if (!insecure) for (const place of listen) refuseExposure(place)
  return {
    exports,
    readOnly,
    listen,
    insecure,
    limits: limitsOf(command, given, config),
    control: given.value('control') ?? config.control ?? defaultControlPath(terminal),
    stateDir: given.value('state-dir') ?? config.stateDir ?? defaultStateDir(terminal),
    blktap2Dir: given.value('blktap2-dir') ?? config.blktap2Dir,
    logLevel:
      level === undefined
        ? logLevel(config.logLevel ?? 'info')
        : ofFlag(command, () => logLevel(level)),
  }
}

function ofFlag<T>(command: Subcommand, read: () => T): T {
  try {
    return read()
  } catch (error) {
    if (error instanceof Fault && error.code === 'INVALID') throw usageError(command, error.message)
    throw error
  }
}

function ofExportFlag(command: Subcommand, text: string): ExportConfig {
  const config = parseExport(text)
  if (config === undefined) throw usageError(command, `--export "${text}" is not NAME=PIPELINE`)
  return config
}

function limitsOf(command: Subcommand, given: Given, config: ServeConfig): Partial<ServerLimits> {
  const limit = (name: string, ofFile: number | undefined, most: number): number | undefined => {
    const text = given.value(name)
    return text === undefined
      ? ofFile === undefined
        ? undefined
        : wholeNumber(name, ofFile, most)
      : ofFlag(command, () => wholeNumber(`--${name}`, Number(text), most))
  }
  const connections = limit('max-connections', config.maxConnections, MOST_CONNECTIONS)
  const handshakeMs = limit('handshake-timeout-ms', config.handshakeTimeoutMs, LONGEST_MS)
  const idleMs = limit('idle-timeout-ms', config.idleTimeoutMs, LONGEST_MS)
  return {
    ...(connections === undefined ? {} : { connections }),
    ...(handshakeMs === undefined ? {} : { handshakeMs }),
    ...(idleMs === undefined ? {} : { idleMs }),
  }
}

function wholeNumber(name: string, value: number, most: number): number {
  if (Number.isInteger(value) && value >= 1 && value <= most) return value
  throw new Fault('INVALID', `${name} is no whole number`, { remedy: `give one from 1 to ${most}` })
}

function logLevel(text: string): LogLevel {
  const level = LOG_LEVELS.find((candidate) => candidate === text)
  if (level !== undefined) return level
  throw new Fault('INVALID', `no log level is named "${text}"`, {
    remedy: `choose ${LOG_LEVELS.join(', ')}`,
  })
}
