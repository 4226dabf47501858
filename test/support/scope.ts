/**
 * What a test or a benchmark leaves behind is removed when its scope ends: a tap test is a scope, and so is a
 * benchmark run. Things are undone in the reverse order of their making.
 */

import { mkdtemp, rm } from 'node:fs/promises'
import os from 'node:os'
import path from 'node:path'

import { freePort } from '../../cli/server-process.ts'

/** Anything that can undo things at its end; tap's `t` is one. */
export interface Scope {
  teardown(undo: () => unknown): void
}

/** A scope for programs that are not tap tests. */
export class ProgramScope implements Scope {
  readonly #undos: (() => unknown)[] = []

  teardown(undo: () => unknown): void {
    this.#undos.push(undo)
  }

  /** Undoes everything, newest first; may be called again after more was added. */
  async end(): Promise<void> {
    for (;;) {
      const undo = this.#undos.pop()
      if (undo === undefined) return
      await undo()
    }
  }
}

/**
 * A new directory, removed with everything in it at the end of the scope. Its name is short, because the path of a
 * unix socket may not exceed 107 bytes.
 */
export async function tempDirectory(scope: Scope, parent: string = os.tmpdir()): Promise<string> {
  const directory = await mkdtemp(path.join(parent, 'colotap-'))
  scope.teardown(() => rm(directory, { recursive: true, force: true }))
  return directory
}

/** TCP ports on loopback that nobody listens on now; all of one call differ. */
export async function freePorts(count: number): Promise<number[]> {
  const ports = new Set<number>()
  while (ports.size < count) ports.add(await freePort())
  return [...ports]
}
