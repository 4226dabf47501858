/**
 * Child processes of tests and benchmarks.
 *
 * Invariants:
 *  - A child never outlives its scope; if the test process itself is killed, the kernel kills the child
 *    (`setpriv --pdeathsig`), so that no server of a failed run disturbs the next one.
 *  - Everything that a child printed is kept, and is part of the error when it ends or stalls unexpectedly.
 */

import { spawn, type ChildProcessByStdio } from 'node:child_process'
import type { Readable, Writable } from 'node:stream'
import type { Scope } from './scope.ts'

/** How long a child may take for one step before the test fails; far more than any step needs. */
const PATIENCE_MS = 60_000

export interface Exit {
  readonly code: number | null
  readonly signal: NodeJS.Signals | null
}

export interface Result extends Exit {
  readonly stdout: string
  readonly stderr: string
}

export interface ChildOptions {
  readonly env?: Readonly<Record<string, string>>
  readonly cwd?: string
  /** All of the child's standard input; without it the input is empty. */
  readonly input?: string
}

export class Child {
  readonly pid: number
  readonly exited: Promise<Exit>
  readonly #name: string
  readonly #process: ChildProcessByStdio<Writable, Readable, Readable>
  readonly #watchers = new Set<() => void>()
  #exit: Exit | undefined
  #stdout = ''
  #stderr = ''

  constructor(
    scope: Scope,
    command: string,
    args: readonly string[],
    { env, cwd, input }: ChildOptions,
  ) {
    this.#name = [command, ...args].join(' ')
    const child = spawn('setpriv', ['--pdeathsig', 'KILL', '--', command, ...args], {
      stdio: ['pipe', 'pipe', 'pipe'],
      ...(cwd === undefined ? {} : { cwd }),
      env: { ...process.env, ...env },
    })
    this.#process = child
    // A child that does not read its input may close it before all is written: its exit tells the story.
    child.stdin.on('error', () => undefined)
    child.stdin.end(input ?? '')
    child.stdout.setEncoding('utf8').on('data', (text: string) => {
      this.#stdout += text
      this.#notify()
    })
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      this.#stderr += text
      this.#notify()
    })
    this.exited = new Promise((resolve, reject) => {
      child.once('error', reject)
      child.once('close', (code, signal) => {
        this.#exit = { code, signal }
        this.#notify()
        resolve(this.#exit)
      })
    })
    this.exited.catch(() => undefined)
    this.pid = child.pid ?? -1
    scope.teardown(() => this.kill())
  }

  get stdout(): string {
    return this.#stdout
  }

  get stderr(): string {
    return this.#stderr
  }

  get ended(): boolean {
    return this.#exit !== undefined
  }

  signal(signal: NodeJS.Signals): void {
    this.#process.kill(signal)
  }

  /** Ends the child whatever it is doing. */
  async kill(): Promise<void> {
    if (this.#exit !== undefined || this.pid === -1) return
    // Stopped processes do not die of SIGTERM, and a test may have stopped this one.
    this.#process.kill('SIGKILL')
    await this.exited
  }

  /** Its exit, which must come by itself. */
  async end(patienceMs = PATIENCE_MS): Promise<Result> {
    await this.until('end', () => this.#exit !== undefined, { orExit: true, patienceMs })
    const exit = await this.exited
    return { ...exit, stdout: this.#stdout, stderr: this.#stderr }
  }

  /** Resolves once it has printed `line` on standard output. */
  async printed(line: string): Promise<void> {
    await this.until(`print "${line}"`, () => this.#stdout.split('\n').slice(0, -1).includes(line))
  }

  /** Resolves once standard output contains `text`. */
  async showed(text: string): Promise<void> {
    await this.until(`print "${text}"`, () => this.#stdout.includes(text))
  }

  /** Resolves once standard error contains `text`. */
  async complained(text: string): Promise<void> {
    await this.until(`log "${text}"`, () => this.#stderr.includes(text))
  }

  /** Resolves once `holds`, which is asked again after all output and at exit. */
  private until(
    what: string,
    holds: () => boolean,
    { orExit = false, patienceMs = PATIENCE_MS } = {},
  ): Promise<void> {
    return new Promise((resolve, reject) => {
      const settle = (error?: Error): void => {
        clearTimeout(patience)
        this.#watchers.delete(look)
        if (error === undefined) resolve()
        else reject(error)
      }
      const look = (): void => {
        if (holds()) settle()
        else if (this.#exit !== undefined && !orExit)
          settle(this.#trouble(`ended before it could ${what}`))
      }
      const patience = setTimeout(
        () => settle(this.#trouble(`did not ${what} within ${patienceMs} ms`)),
        patienceMs,
      )
      this.exited.catch((error: unknown) =>
        settle(error instanceof Error ? error : new Error(String(error))),
      )
      this.#watchers.add(look)
      look()
    })
  }

  #notify(): void {
    for (const look of [...this.#watchers]) look()
  }

  #trouble(what: string): Error {
    const exit = this.#exit === undefined ? '' : `\nexit: ${JSON.stringify(this.#exit)}`
    return new Error(
      `${this.#name}: ${what}${exit}\nstdout: ${this.#stdout}\nstderr: ${this.#stderr}`,
    )
  }
}

/** Starts a program that runs beside the test. */
export function startChild(
  scope: Scope,
  command: string,
  args: readonly string[],
  options: ChildOptions = {},
): Child {
  return new Child(scope, command, args, options)
}

/** Runs a program to its end, whatever its exit code. */
export async function runTool(
  scope: Scope,
  command: string,
  args: readonly string[],
  options: ChildOptions & { readonly patienceMs?: number } = {},
): Promise<Result> {
  return startChild(scope, command, args, options).end(options.patienceMs)
}

/** Runs a program that must succeed, and gives what it printed. */
export async function mustRun(
  scope: Scope,
  command: string,
  args: readonly string[],
  options: ChildOptions & { readonly patienceMs?: number } = {},
): Promise<string> {
  const result = await runTool(scope, command, args, options)
  if (result.code === 0) return result.stdout
  throw new Error(
    `${[command, ...args].join(' ')}: exit ${String(result.code ?? result.signal)}\n${result.stderr}${result.stdout}`,
  )
}
