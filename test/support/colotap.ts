/**
 * Real colotap servers for tests and benchmarks: the launcher that users run, in a process of its own.
 *
 * Invariant: a server returned by serveColotap has printed `ready`; nothing waits for a fixed time.
 */

import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { startChild, runTool, type Child, type Exit, type Result } from './child.ts'
import { QmpClient } from './qmp.ts'
import { tempDirectory, type Scope } from './scope.ts'

/** The folder of package.json, seen from the source tree as from the compiled one. */
export const PROJECT = projectFolder()

function projectFolder(): string {
  const here = path.dirname(fileURLToPath(import.meta.url))
  const up = path.resolve(here, '..', '..')
  return path.basename(up) === 'dist' ? path.dirname(up) : up
}

const LAUNCHER = path.join(PROJECT, 'bin', 'colotap')

export interface ColotapServer {
  readonly child: Child
  /** Path of its NBD socket. */
  readonly socket: string
  /** Path of its control socket. */
  readonly control: string
  /** NBD URI of an export, as libnbd, QEMU and fio take it. */
  uri(name: string): string
  qmp(): Promise<QmpClient>
  /** SIGTERM, and its exit. */
  stop(): Promise<Exit>
}

export interface ServeOptions {
  /** Pipelines by export name. */
  readonly exports: Readonly<Record<string, string>>
  /** Further arguments. */
  readonly args?: readonly string[]
  /** Where its sockets and state live; a new directory by default. */
  readonly directory?: string
  /** A command in front of the server's, such as one that enters a namespace first. */
  readonly within?: readonly string[]
}

/** Starts `colotap serve` on unix sockets and awaits its `ready`. */
export async function serveColotap(scope: Scope, options: ServeOptions): Promise<ColotapServer> {
  const directory = options.directory ?? (await tempDirectory(scope))
  const socket = path.join(directory, 'nbd.sock')
  const control = path.join(directory, 'control.sock')
  const [command = '', ...before] = options.within ?? []
  const [program, ...args] =
    command === ''
      ? ([process.execPath] as const)
      : ([command, ...before, process.execPath] as const)
  const child = startChild(scope, program, [
    ...args,
    LAUNCHER,
    'serve',
    ...Object.entries(options.exports).flatMap(([name, pipeline]) => [
      '--export',
      `${name}=${pipeline}`,
    ]),
    ...['--listen', `unix:${socket}`, '--control', control],
    ...['--state-dir', path.join(directory, 'state')],
    ...(options.args ?? []),
  ])
  await child.printed('ready')
  return {
    child,
    socket,
    control,
    uri: (name) => nbdUri(socket, name),
    qmp: () => QmpClient.connect(scope, control),
    async stop() {
      child.signal('SIGTERM')
      const { code, signal } = await child.end()
      return { code, signal }
    },
  }
}

/** Runs a colotap command to its end. */
export function colotap(scope: Scope, args: readonly string[]): Promise<Result> {
  return runTool(scope, process.execPath, [LAUNCHER, ...args])
}

export function nbdUri(socket: string, name: string): string {
  return `nbd+unix:///${encodeURIComponent(name)}?socket=${socket}`
}
