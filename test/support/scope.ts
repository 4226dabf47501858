/**
 * What a test or a benchmark leaves behind is removed when its scope ends: a tap test is a scope, and so is a
 * benchmark run. Things are undone in the reverse order of their making.
 */

import { mkdtemp, rm } from 'node:fs/promises'
import net from 'node:net'
import os from 'node:os'
import path from 'node:path'

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
  const servers = await Promise.all(Array.from({ length: count }, () => listenOnAnyPort()))
  const ports = servers.map((server) => {
    const address = server.address()
    if (address === null || typeof address === 'string') throw new Error('a TCP server has a port')
    return address.port
  })
  await Promise.all(
    servers.map((server) => new Promise((resolve) => server.close(() => resolve(undefined)))),
  )
  return ports
}

function listenOnAnyPort(): Promise<net.Server> {
  return new Promise((resolve, reject) => {
    const server = net.createServer()
    server.once('error', reject)
    server.listen(0, '127.0.0.1', () => resolve(server))
  })
}
