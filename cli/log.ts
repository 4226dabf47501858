/** The server's log: JSON lines on standard error, written without blocking, complete when the process ends in order. */

import { destination, pino, stdSerializers, stdTimeFunctions } from 'pino'

import type { Logger } from '../core/logger.ts'
import type { LogLevel } from './serve-settings.ts'

const STDERR = 2

export interface Log extends Logger {
  /** Writes what is still in memory, at once. To be called before the process exits. */
  flushNow(): void
}

export function openLog(level: LogLevel): Log {
  const stream = destination({ dest: STDERR, sync: false })
  // Nobody reads any more: a server serves on without its log.
  stream.on('error', () => undefined)
  const logger = pino(
    {
      level,
      timestamp: stdTimeFunctions.isoTime,
      formatters: { level: (label) => ({ level: label }) },
      serializers: { error: stdSerializers.err, err: stdSerializers.err },
    },
    stream,
  )
  return {
    debug: (details, message) => logger.debug(details, message),
    info: (details, message) => logger.info(details, message),
    warn: (details, message) => logger.warn(details, message),
    error: (details, message) => logger.error(details, message),
    flushNow: () => {
      try {
        stream.flushSync()
      } catch {
        // Standard error is closed: there is nowhere to say so.
      }
    },
  }
}
