/** A colotap server in a process of its own, as an operator would start it: for the demo's two hosts. */

import { spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { createServer } from 'node:net'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

import { Fault } from '../../core/fault.ts'

const LAUNCHER = fileURLToPath(new URL('../../../bin/colotap', import.meta.url))

export class ServerProcess {
  readonly name: string
  readonly nbdSocket: string
  readonly controlSocket: string
  readonly #process: ChildProcess
  readonly #ended: Promise<unknown>
  #log = ''

  private constructor(name: string, folder: string, exports: Readonly<Record<string, string>>) {
    this.name = name
    this.nbdSocket = path.join(folder, `${name}.nbd`)
    this.controlSocket = path.join(folder, `${name}.control`)
    const given = Object.entries(exports).flatMap(([disk, pipeline]) => [
      '--export',
      `${disk}=${pipeline}`,
    ])
    const listen = ['--listen', `unix:${this.nbdSocket}`, '--control', this.controlSocket]
    const state = ['--state-dir', path.join(folder, `${name}.state`)]
    this.#process = spawn(process.execPath, [LAUNCHER, 'serve', ...given, ...listen, ...state], {
      stdio: ['ignore', 'pipe', 'pipe'],
    })
    this.#ended = once(this.#process, 'exit')
    this.#process.stderr
      ?.setEncoding('utf8')
      .on('data', (text: string) => (this.#log = (this.#log + text).slice(-8192)))
  }

  /** @throws Fault when it ends before it is ready, with the last of what it logged */
  static async start(
    name: string,
    folder: string,
    exports: Readonly<Record<string, string>>,
  ): Promise<ServerProcess> {
    const server = new ServerProcess(name, folder, exports)
    const ready = new Promise<boolean>((resolve) => {
      server.#process.stdout?.setEncoding('utf8').on('data', (text: string) => {
        if (text.includes('ready')) resolve(true)
      })
    })
    if (await Promise.race([ready, server.#ended.then(() => false)])) return server
    throw new Fault('IO', `the ${name} did not start`, {
      where: server.#log.trim().split('\n').at(-1) ?? 'no log',
    })
  }

  get pid(): number {
    return this.#process.pid ?? 0
  }

  /** Sends SIGKILL and does not wait. */
  kill(): void {
    this.#process.kill('SIGKILL')
  }

  async end(signal: 'SIGKILL' | 'SIGTERM'): Promise<void> {
    if (this.#process.exitCode === null && this.#process.signalCode === null)
      this.#process.kill(signal)
    await this.#ended
  }

  /** Whether it ended by itself and said that all went well. */
  get endedWell(): boolean {
    return this.#process.exitCode === 0
  }
}

/** A port of the loopback address that was free just now. */
export async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const address = server.address()
  server.close()
  await once(server, 'close')
  if (address === null || typeof address === 'string')
    throw new Fault('IO', 'no free port on the loopback address')
  return address.port
}
