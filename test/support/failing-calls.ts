/** System calls of a running process that fail, as on a disk that is dead: strace answers them in the kernel's place (ptrace). */

import { startChild, type Child } from './child.ts'
import type { Scope } from './scope.ts'

export class FailingCalls {
  readonly #tracer: Child

  private constructor(tracer: Child) {
    this.#tracer = tracer
  }

  /** From now on these calls fail with EIO, of all threads, where they concern one of the files. */
  static async begin(
    scope: Scope,
    pid: number,
    calls: readonly string[],
    files: readonly string[],
  ): Promise<FailingCalls> {
    const which = calls.join(',')
    const tracer = startChild(scope, 'strace', [
      ...['--follow-forks', '-p', String(pid), '-e', `trace=${which}`],
      ...['-e', `inject=${which}:error=EIO`],
      ...files.flatMap((file) => ['-P', file]),
    ])
    await tracer.complained(' attached')
    return new FailingCalls(tracer)
  }

  /** Resolves once one has failed. */
  hit(): Promise<void> {
    return this.#tracer.complained('(INJECTED)')
  }

  /** The calls are the kernel's again. */
  async end(): Promise<void> {
    this.#tracer.signal('SIGTERM')
    await this.#tracer.end()
  }
}
