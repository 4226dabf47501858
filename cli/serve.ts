/**
 * `colotap serve`: runs a server until it is told to stop.
 *
 * Invariants:
 *  - `ready` is printed once, when every listener is up, and is all that standard output ever gets.
 *  - The first SIGTERM, SIGINT or SIGHUP (or the command quit) stops in order; a second one, later, ends at once, with 1.
 *  - After an error that nobody expected the process ends: its state is unknown.
 */

import { DRIVERS } from '../drivers/registry.ts'
import type { Given, Subcommand, Terminal } from './command-line.ts'
import { readConfig, type ServeConfig } from './config-file.ts'
import { openLog, type Log } from './log.ts'
import { LOG_LEVELS, settingsOf } from './serve-settings.ts'
import { Server } from './server.ts'
import { notifySystemd } from './systemd.ts'

const NOTES = `A pipeline is driver:target?key=value, layers first, joined by |, such as aio:/srv/vm/disk.img or
colo:192.0.2.7:9000?role=primary&group=vm1|aio:/srv/vm/disk.img. Prints "ready" when every listener is up.
Stops in order on SIGTERM, SIGINT or SIGHUP. The default control socket is /run/colotap/control.sock for root,
and $XDG_RUNTIME_DIR/colotap/control.sock for everybody else; lasting state is kept below /var/lib/colotap for root, and
below $XDG_STATE_HOME/colotap or ~/.local/state/colotap for everybody else. docs/cli.md describes the configuration file.`

const EMPTY: ServeConfig = { exports: [], listen: [] }

/** A signal that comes again so soon, in milliseconds, is the same one: to the process and to its group. */
const ECHO_MS = 500

/** How long after the orderly end something forgotten may keep the process alive, in milliseconds. */
const LINGER_MS = 2000

export const serve: Subcommand = {
  name: 'serve',
  summary: 'serve disks over NBD until told to stop',
  options: {
    config: { value: 'FILE', meaning: 'read a configuration file (TOML); flags add to it or win' },
    export: { value: 'NAME=PIPELINE', repeats: true, meaning: 'serve a disk under a name' },
    listen: {
      value: 'unix:PATH|tcp:HOST:PORT|systemd',
      repeats: true,
      meaning:
        'accept NBD clients here; at least one is needed; ?tls-creds=DIR or ?tls-psk=FILE for TLS',
    },
    allow: {
      value: 'NAME=CLIENT',
      repeats: true,
      meaning: 'keep an export for the clients named: cn:NAME, dn:SUBJECT or psk:USER',
    },
    'max-connections': { value: 'N', meaning: 'NBD clients at a time (1000)' },
    'handshake-timeout-ms': { value: 'MS', meaning: 'how long a client may negotiate (10000)' },
    'idle-timeout-ms': { value: 'MS', meaning: 'drop clients that are idle for so long (never)' },
    control: { value: 'PATH', meaning: 'the control socket' },
    'state-dir': { value: 'DIR', meaning: 'where journals and other lasting state are kept' },
    'blktap2-dir': {
      value: 'DIR',
      meaning: 'make the checkpoint sockets and FIFOs of blktap2 here',
    },
    'read-only': { meaning: 'let no client write to any export' },
    'log-level': { value: LOG_LEVELS.join('|'), meaning: 'what to log on standard error' },
    insecure: { meaning: 'allow addresses beyond loopback without encryption' },
  },
  notes: NOTES,
  run,
}

async function run(given: Given, terminal: Terminal): Promise<void> {
  const file = given.value('config')
  const config = file === undefined ? EMPTY : await readConfig(file)
  const settings = settingsOf(serve, given, config, terminal)
  const log = openLog(settings.logLevel)
  process.on('exit', () => log.flushNow())
  const stop = awaitStop(log)
  try {
    const server = await Server.start({
      settings,
      drivers: DRIVERS,
      logger: log,
      onQuit: () => stop.request('the command quit'),
    })
    terminal.print('ready')
    await notifySystemd('READY=1', terminal.env, log)
    const reason = await stop.requested
    log.info({ reason }, 'stopping')
    await Promise.all([notifySystemd('STOPPING=1', terminal.env, log), server.close()])
    log.info({}, 'stopped')
  } finally {
    endLeftovers(log)
  }
}

interface Stop {
  /** Resolves with the reason of the first request. */
  readonly requested: Promise<string>
  request(reason: string): void
}

function awaitStop(log: Log): Stop {
  let request: (reason: string) => void = () => undefined
  const requested = new Promise<string>((resolve) => {
    request = resolve
  })
  let first: NodeJS.Signals | undefined
  let firstMs = 0
  for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP'] as const) {
    process.on(signal, () => {
      const nowMs = performance.now()
      if (signal === first && nowMs - firstMs < ECHO_MS) return
      if (first !== undefined) {
        log.warn({ signal }, 'second signal: ending at once')
        process.exit(1)
      }
      first = signal
      firstMs = nowMs
      request(signal)
    })
  }
  process.on('uncaughtException', (error, origin) => {
    log.error({ error, origin }, 'a bug in colotap: ending, because its state is unknown')
    process.stderr.write(`colotap: a bug in colotap: ${error.stack ?? error.message}\n`)
    process.exit(1)
  })
  return { requested, request }
}

/** The process ends when nothing is open any more. What is, in spite of the orderly end, is named and cut. */
function endLeftovers(log: Log): void {
  setTimeout(() => {
    log.warn({ resources: process.getActiveResourcesInfo() }, 'something was left open')
    process.exit()
  }, LINGER_MS).unref()
}
