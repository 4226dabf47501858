/** A colotap server in a process of its own, as an operator would start it: for commands that need a pair of hosts. */

import { spawn, type ChildProcess } from 'node:child_process'
import { randomInt } from 'node:crypto'
import { once } from 'node:events'
import { createServer } from 'node:net'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

import { Fault } from '../core/fault.ts'

const LAUNCHER = fileURLToPath(new URL('../../bin/colotap', import.meta.url))
/** Characters of its log that are kept. */
const LOG_KEPT = 8192
const LOWEST_PORT = 10_000
const FIRST_OUTGOING_PORT = 32_768

export interface ServerOptions {
  /** Out of reach of the signals that a terminal sends, such as Ctrl-C: then whoever started it must end it. */
  readonly ownGroup?: boolean
}

export class ServerProcess {
  readonly name: string
  readonly nbdSocket: string
  readonly controlSocket: string
  /** Resolves when it has ended, however. */
  readonly ended: Promise<void>
  readonly #process: ChildProcess
  #log = ''

  private constructor(
    name: string,
    folder: string,
    exports: Readonly<Record<string, string>>,
    { ownGroup = false }: ServerOptions,
  ) {
    this.name = name
    this.nbdSocket = path.join(folder, `${name}.nbd`)
    this.controlSocket = path.join(folder, `${name}.control`)
    const given = Object.entries(exports).flatMap(([disk, pipeline]) => [
      '--export',
      `${disk}=${pipeline}`,
    ])
    const listen = ['--listen', `unix:${this.nbdSocket}`, '--control', this.controlSocket]
    const state = ['--state-dir', stateFolder(name, folder)]
    this.#process = spawn(process.execPath, [LAUNCHER, 'serve', ...given, ...listen, ...state], {
      stdio: ['ignore', 'pipe', 'pipe'],
      detached: ownGroup,
    })
    this.ended = new Promise((resolve) => {
      this.#process.once('close', () => resolve())
      // It could not even be started; `pid` says so.
      this.#process.once('error', () => resolve())
    })
    this.#process.stderr
      ?.setEncoding('utf8')
      .on('data', (text: string) => (this.#log = (this.#log + text).slice(-LOG_KEPT)))
  }

  /** @throws Fault when it ends before it is ready, with the last of what it logged */
  static async start(
    name: string,
    folder: string,
    exports: Readonly<Record<string, string>>,
    options: ServerOptions = {},
  ): Promise<ServerProcess> {
    const server = new ServerProcess(name, folder, exports, options)
    if (await server.#ready()) return server
    throw new Fault('IO', `the ${name} did not start`, { where: server.lastWords })
  }

  get pid(): number {
    return this.#process.pid ?? 0
  }

  /** The end of its log. */
  get lastWords(): string {
    return this.#log.trim().split('\n').at(-1) ?? 'no log'
  }

  get running(): boolean {
    return (
      this.#process.pid !== undefined &&
      this.#process.exitCode === null &&
      this.#process.signalCode === null
    )
  }

  /** How it ended, for people. */
  get exit(): string {
    const { exitCode, signalCode } = this.#process
    return signalCode ?? `exit code ${exitCode ?? 'unknown'}`
  }

  /** Sends a signal and does not wait for what comes of it. */
  signal(signal: NodeJS.Signals): void {
    this.#process.kill(signal)
  }

  async end(signal: 'SIGKILL' | 'SIGTERM'): Promise<void> {
    if (this.running) this.#process.kill(signal)
    await this.ended
  }

  /** Whether it ended by itself and said that all went well. */
  get endedWell(): boolean {
    return this.#process.exitCode === 0
  }

  #ready(): Promise<boolean> {
    const ready = new Promise<boolean>((resolve) => {
      this.#process.stdout?.setEncoding('utf8').on('data', (text: string) => {
        if (text.includes('ready')) resolve(true)
      })
    })
    return Promise.race([ready, this.ended.then(() => false)])
  }
}

/** Where a server of that name keeps what has to survive it. */
export function stateFolder(name: string, folder: string): string {
  return path.join(folder, `${name}.state`)
}

/**
 * A port of the loopback address that was free just now. It is none of those that Linux gives to outgoing connections
 * (net.ipv4.ip_local_port_range): one of these would be taken by anybody's next connection.
 */
export async function freePort(): Promise<number> {
  for (let tries = 0; tries < 100; tries += 1) {
    const port = randomInt(LOWEST_PORT, FIRST_OUTGOING_PORT)
    const server = createServer()
    const listening = once(server, 'listening')
    server.listen(port, '127.0.0.1')
    const taken = await listening.then(
      () => false,
      () => true,
    )
    if (taken) continue
    server.close()
    await once(server, 'close')
    return port
  }
  throw new Fault('IO', 'no free port on the loopback address')
}
