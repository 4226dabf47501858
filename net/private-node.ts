/**
 * A socket or a FIFO in the file system that only its owner can ever open, or those that a mode lets in.
 *
 * Invariants:
 *  - It appears under its path with its mode, 0600 unless told: it is made in a private folder and linked into place.
 *  - One that a living server uses is never taken away; one that a dead server left behind is replaced.
 *  - Nothing of another kind is ever removed from the path, and on closing only the one that was put there.
 */

import type { Stats } from 'node:fs'
import { chmod, link, lstat, mkdtemp, rename, rm, unlink } from 'node:fs/promises'
import { dirname, join, resolve } from 'node:path'

import { asFault, Fault } from '../core/fault.ts'

export interface PrivateNode {
  readonly path: string
  /** Removes its name, if that is still its own. Whoever made it closes what stands behind it. */
  unlink(): Promise<void>
}

export interface NodeKind {
  /** Names the node in messages, such as `control socket`. */
  readonly what: string
  readonly mode?: number
  /** Bytes that a path may have at most, where there is a limit. */
  readonly longestPath?: number
  /** Makes it at `path`, which is free. */
  make(path: string): Promise<void>
  /** Undoes it, but for the name. */
  unmake?(): void
  isOne(found: Stats): boolean
  /** Whether a living server uses the one at `path`. */
  inUse(path: string): Promise<boolean>
}

/**
 * Makes a node of a kind at `given`.
 * @throws Fault IN_USE when a living server or something else has the path, INVALID when it is too long, else IO.
 */
export async function makePrivateNode(kind: NodeKind, given: string): Promise<PrivateNode> {
  const path = resolve(given)
  try {
    // Beside the node, so that it can be linked, and in the only folder that must be writable; join() would lose the dot.
    const folder = await mkdtemp(`${dirname(path)}/.`)
    try {
      return await makeIn(kind, folder, path)
    } finally {
      await rm(folder, { recursive: true, force: true })
    }
  } catch (error) {
    throw asFault(error, 'IO', `cannot listen on the ${kind.what}`, {
      where: path,
      remedy: 'choose a path in an existing folder that you may write to',
    })
  }
}

async function makeIn(kind: NodeKind, folder: string, path: string): Promise<PrivateNode> {
  const made = join(folder, 's')
  const { longestPath = Infinity } = kind
  if (Buffer.byteLength(path) > longestPath || Buffer.byteLength(made) > longestPath) {
    throw new Fault('INVALID', `the path of the ${kind.what} is too long`, {
      where: path,
      remedy: `choose one whose folder has at most ${longestPath - '/.XXXXXX/s'.length} bytes`,
    })
  }
  await kind.make(made)
  try {
    await chmod(made, kind.mode ?? 0o600)
    const { ino, dev } = await lstat(made)
    await putInPlace(kind, made, path, folder)
    return {
      path,
      unlink: async () => {
        const there = await lstat(path).catch(() => undefined)
        if (there?.ino === ino && there.dev === dev) await unlink(path)
      },
    }
  } catch (error) {
    kind.unmake?.()
    throw error
  }
}

/** Links `made` to `path`; link() refuses to replace what is there, so two servers cannot both succeed. */
async function putInPlace(
  kind: NodeKind,
  made: string,
  path: string,
  folder: string,
): Promise<void> {
  for (const attempt of [1, 2]) {
    try {
      await link(made, path)
      return
    } catch (error) {
      if (!hasCode(error, 'EEXIST') || attempt === 2) throw error
    }
    await removeStale(kind, path, folder)
  }
}

async function removeStale(kind: NodeKind, path: string, folder: string): Promise<void> {
  const found = await lstat(path)
  if (!kind.isOne(found)) {
    throw new Fault('IN_USE', `the path of the ${kind.what} is taken by something else`, {
      where: path,
      remedy: 'choose another path, or remove it yourself',
    })
  }
  if (await kind.inUse(path)) throw usedByAnother(kind, path)
  // Moved aside first: if another server was faster and put its own there, it gets it back.
  const aside = join(folder, 'stale')
  await rename(path, aside)
  if ((await lstat(aside)).ino === found.ino) return
  await link(aside, path)
  throw usedByAnother(kind, path)
}

function usedByAnother({ what }: NodeKind, path: string): Fault {
  return new Fault('IN_USE', `another server listens on the ${what}`, {
    where: path,
    remedy: 'stop it, or choose another path',
  })
}

export function hasCode(error: unknown, code: string): boolean {
  return error instanceof Error && (error as NodeJS.ErrnoException).code === code
}
