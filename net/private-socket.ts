/**
 * A listening unix socket that only its owner can ever connect to, or those that a mode lets in.
 *
 * Invariants:
 *  - The socket appears under its path with its mode, 0600 unless told: it is made in a private folder and linked into
 *    place.
 *  - A socket that a living server listens on is never taken away; one that a dead server left behind is replaced.
 *  - Nothing but a socket is ever removed from the path, and on closing only the one that was put there.
 */

import { once } from 'node:events'
import { chmod, link, lstat, mkdtemp, rename, rm, unlink } from 'node:fs/promises'
import { connect, type Server } from 'node:net'
import { dirname, join, resolve } from 'node:path'

import { asFault, Fault } from '../core/fault.ts'

/** The longest path that fits sockaddr_un with its closing zero (unix(7)). */
const LONGEST_PATH = 107

export interface PrivateSocket {
  readonly path: string
  /** Removes the socket's name. The server itself is closed by who made it. */
  unlink(): Promise<void>
}

/**
 * Makes `server` listen on `given`; `what` names the socket in messages.
 * @throws Fault IN_USE when a living server or something else has the path, INVALID when it is too long, else IO.
 */
export async function listenPrivately(
  server: Server,
  given: string,
  what: string,
  mode = 0o600,
): Promise<PrivateSocket> {
  const path = resolve(given)
  try {
    // Beside the socket, so that it can be linked, and in the only folder that must be writable; join() would lose the dot.
    const folder = await mkdtemp(`${dirname(path)}/.`)
    try {
      return await listenIn(server, folder, path, what, mode)
    } finally {
      await rm(folder, { recursive: true, force: true })
    }
  } catch (error) {
    throw asFault(error, 'IO', `cannot listen on the ${what}`, {
      where: path,
      remedy: 'choose a path in an existing folder that you may write to',
    })
  }
}

async function listenIn(
  server: Server,
  folder: string,
  path: string,
  what: string,
  mode: number,
): Promise<PrivateSocket> {
  const made = join(folder, 's')
  if (Buffer.byteLength(path) > LONGEST_PATH || Buffer.byteLength(made) > LONGEST_PATH) {
    throw new Fault('INVALID', `the path of the ${what} is too long`, {
      where: path,
      remedy: `choose one whose folder has at most ${LONGEST_PATH - '/.XXXXXX/s'.length} bytes`,
    })
  }
  const listening = once(server, 'listening') // rejects with the 'error' event when binding fails
  server.listen(made)
  await listening
  try {
    await chmod(made, mode)
    const { ino, dev } = await lstat(made)
    await putInPlace(made, path, folder, what)
    return {
      path,
      unlink: async () => {
        const there = await lstat(path).catch(() => undefined)
        if (there?.ino === ino && there.dev === dev) await unlink(path)
      },
    }
  } catch (error) {
    server.close()
    throw error
  }
}

/** Links `made` to `path`; link() refuses to replace what is there, so two servers cannot both succeed. */
async function putInPlace(made: string, path: string, folder: string, what: string): Promise<void> {
  for (const attempt of [1, 2]) {
    try {
      await link(made, path)
      return
    } catch (error) {
      if (!hasCode(error, 'EEXIST') || attempt === 2) throw error
    }
    await removeStale(path, folder, what)
  }
}

async function removeStale(path: string, folder: string, what: string): Promise<void> {
  const found = await lstat(path)
  if (!found.isSocket()) {
    throw new Fault('IN_USE', `the path of the ${what} is taken by something else`, {
      where: path,
      remedy: 'choose another path, or remove it yourself',
    })
  }
  if (await answers(path)) throw inUse(path, what)
  // Moved aside first: if another server was faster and put its own there, it gets it back.
  const aside = join(folder, 'stale')
  await rename(path, aside)
  if ((await lstat(aside)).ino === found.ino) return
  await link(aside, path)
  throw inUse(path, what)
}

function inUse(path: string, what: string): Fault {
  return new Fault('IN_USE', `another server listens on the ${what}`, {
    where: path,
    remedy: 'stop it, or choose another path',
  })
}

/** Whether somebody listens. Only a refused connection proves that nobody does. */
function answers(path: string): Promise<boolean> {
  return new Promise((done) => {
    const probe = connect(path)
    probe.once('connect', () => {
      probe.destroy()
      done(true)
    })
    probe.once('error', (error) => {
      done(!hasCode(error, 'ECONNREFUSED'))
    })
  })
}

function hasCode(error: unknown, code: string): boolean {
  return error instanceof Error && (error as NodeJS.ErrnoException).code === code
}
