/**
 * A file system in memory, as the list of what was done to it. A crash after any step of the list leaves what was synced and,
 * of the rest, what a fate decides: of content nothing, all, or some sectors; of names none, all, or any of them, each for
 * itself, whether or not what they name is there. This is less than any file system in use promises.
 *
 * Invariants:
 *  - A step is in the list when its request is made, a sync when it has been answered: what a crash in between leaves is
 *    among the outcomes of the steps before.
 *  - Requests are answered in the order in which they were made, each in a turn of the event loop of its own.
 */

import { dirname } from 'node:path'

import { seededRandom, type Random } from '../../../core/seeded-random.ts'
import { SECTOR } from '../../../core/units.ts'
import type { Opening, StateFile, StateFiles } from '../../../replication/state-files.ts'

/** What has a name: a folder, or the file of this number, which stays itself whatever it is called. */
type Named = 'folder' | number

type Change =
  | { readonly kind: 'write'; readonly file: number; readonly at: number; readonly bytes: Buffer }
  | { readonly kind: 'empty'; readonly file: number }
  | { readonly kind: 'name'; readonly path: string; readonly named: Named }
  | { readonly kind: 'unname'; readonly path: string }

/** What has one fate. */
type Step =
  | { readonly kind: 'change'; readonly changes: readonly Change[] }
  /** Of what was done in the first `until` steps to a file, or to the names in a folder. */
  | { readonly kind: 'sync'; readonly what: number | string; readonly until: number }

/** What becomes of what was not synced. `named`: names are there, content is not. */
export type Fate = 'dropped' | 'kept' | 'named' | 'torn'

export const FATES: readonly Fate[] = ['dropped', 'kept', 'named', 'torn']

/** What is there. */
class Tree {
  readonly names: Map<string, Named>
  /** Nothing in these buffers is ever changed. */
  readonly contents: Map<number, Buffer>

  constructor(names: Iterable<readonly [string, Named]>, contents: Iterable<[number, Buffer]>) {
    this.names = new Map(names)
    this.contents = new Map(contents)
  }

  copy(): Tree {
    return new Tree(this.names, this.contents)
  }

  content(file: number): Buffer {
    return this.contents.get(file) ?? Buffer.alloc(0)
  }

  apply(change: Change): void {
    if (change.kind === 'name') this.names.set(change.path, change.named)
    else if (change.kind === 'unname') this.names.delete(change.path)
    else if (change.kind === 'empty') this.contents.set(change.file, Buffer.alloc(0))
    else this.write(change.file, change.at, change.bytes)
  }

  write(file: number, at: number, bytes: Buffer): void {
    if (bytes.length === 0) return
    const before = this.content(file)
    const after = Buffer.alloc(Math.max(before.length, at + bytes.length))
    before.copy(after)
    bytes.copy(after, at)
    this.contents.set(file, after)
  }

  /** What is in a folder that is not there is not there either. */
  forgetLost(): void {
    // Folders before what is in them.
    for (const path of [...this.names.keys()].sort())
      if (path !== '/' && this.names.get(dirname(path)) !== 'folder') this.names.delete(path)
  }
}

export class RecordedFiles implements StateFiles {
  /** What was there when the recording began, and is there now. */
  readonly #before: Tree
  readonly #present: Tree
  readonly steps: Step[] = []
  /** The number of the last file that was made. */
  #files: number

  private constructor(before: Tree) {
    this.#before = before
    this.#present = before.copy()
    const named = [...before.names.values()].filter((named) => named !== 'folder')
    this.#files = Math.max(0, ...named, ...before.contents.keys())
  }

  /** @param contents files that are there, by path, in folders that are there */
  static of(contents: ReadonlyMap<string, Buffer>): RecordedFiles {
    const names = new Map<string, Named>([['/', 'folder']])
    const files = [...contents].map(([path, bytes], index) => {
      for (let above = dirname(path); above !== '/'; above = dirname(above))
        names.set(above, 'folder')
      names.set(path, index + 1)
      return [index + 1, bytes] as [number, Buffer]
    })
    return new RecordedFiles(new Tree(names, files))
  }

  /** The present bytes of a file. */
  bytesOf(path: string): Buffer {
    return this.#present.content(this.#number(path))
  }

  /** What a crash leaves after the first `steps` steps; `seed` decides what is torn, and how. */
  afterCrash(steps: number, fate: Fate, seed: number): RecordedFiles {
    const left = this.#before.copy()
    let pending: { readonly index: number; readonly change: Change }[] = []
    for (const [index, step] of this.steps.slice(0, steps).entries()) {
      if (step.kind === 'change') {
        for (const change of step.changes) pending.push({ index, change })
        continue
      }
      const isSynced = (each: (typeof pending)[number]): boolean =>
        placeOf(each.change) === step.what && each.index < step.until
      for (const each of pending) if (isSynced(each)) left.apply(each.change)
      pending = pending.filter((each) => !isSynced(each))
    }
    const chance = seededRandom(seed)
    for (const { change } of pending) leave(left, change, fate, chance)
    left.forgetLost()
    return new RecordedFiles(left)
  }

  isFolder(path: string): Promise<boolean> {
    return Promise.resolve(this.#present.names.get(path) === 'folder')
  }

  makeFolder(path: string): Promise<void> {
    this.#within(path)
    if (!this.#present.names.has(path)) this.#change({ kind: 'name', path, named: 'folder' })
    return turn()
  }

  async list(folder: string): Promise<string[]> {
    await turn()
    if (this.#present.names.get(folder) !== 'folder') throw failure('ENOENT', folder)
    return [...this.#present.names.keys()]
      .filter((path) => path !== '/' && dirname(path) === folder)
      .map((path) => path.slice(folder.length + 1))
  }

  async open(path: string, how: Opening): Promise<StateFile> {
    if (how !== 'new') await turn()
    else if (this.#present.names.has(path)) {
      this.#change({ kind: 'empty', file: this.#number(path) })
      await turn()
    } else {
      this.#within(path)
      this.#change({ kind: 'name', path, named: (this.#files += 1) })
      await turn()
    }
    return this.#handle(this.#number(path))
  }

  rename(from: string, to: string): Promise<void> {
    const named = this.#number(from)
    this.#change({ kind: 'name', path: to, named }, { kind: 'unname', path: from })
    return turn()
  }

  remove(path: string): Promise<void> {
    if (this.#present.names.has(path)) this.#change({ kind: 'unname', path })
    return turn()
  }

  syncNames(folder: string): Promise<void> {
    return this.#sync(folder)
  }

  #handle(file: number): StateFile {
    return {
      read: (into, at) => Promise.resolve(this.#present.content(file).subarray(at).copy(into)),
      write: (chunks, at) => {
        this.#change({ kind: 'write', file, at, bytes: Buffer.concat(chunks) })
        return turn()
      },
      sync: () => this.#sync(file),
      empty: () => {
        this.#change({ kind: 'empty', file })
        return turn()
      },
      close: () => Promise.resolve(),
    }
  }

  #number(path: string): number {
    const named = this.#present.names.get(path)
    if (named === undefined) throw failure('ENOENT', path)
    if (named === 'folder') throw failure('EISDIR', path)
    return named
  }

  #within(path: string): void {
    if (this.#present.names.get(dirname(path)) !== 'folder') throw failure('ENOENT', path)
  }

  #change(...changes: readonly Change[]): void {
    this.steps.push({ kind: 'change', changes })
    for (const change of changes) this.#present.apply(change)
  }

  async #sync(what: number | string): Promise<void> {
    const until = this.steps.length
    await turn()
    this.steps.push({ kind: 'sync', what, until })
  }
}

/** What is under way goes on. */
export function turn(): Promise<void> {
  return new Promise(setImmediate)
}

/** The file, or the folder, whose sync makes a change last. */
function placeOf(change: Change): number | string {
  return 'file' in change ? change.file : dirname(change.path)
}

function leave(left: Tree, change: Change, fate: Fate, chance: Random): void {
  if (fate === 'torn') {
    if (change.kind === 'write') tear(left, change, chance)
    else if (chance() < 0.5) left.apply(change)
  } else if (fate === 'kept' || (fate === 'named' && !('file' in change))) left.apply(change)
}

/**
 * Any of the sectors of a write; what it adds to the end of the file may end in the middle of one, and be of the new length
 * with zeroes in it.
 */
function tear(
  left: Tree,
  { file, at, bytes }: Extract<Change, { kind: 'write' }>,
  chance: Random,
): void {
  const kept = chance()
  const { length } = left.content(file)
  const end = at + bytes.length
  if (end > length && chance() < 0.5) left.write(file, length, Buffer.alloc(end - length))
  for (let done = 0; done < bytes.length;) {
    const next = Math.min(bytes.length, done + SECTOR - ((at + done) % SECTOR))
    const isBehind = at + done >= length
    const cut = isBehind && chance() < 0.1 ? done + Math.floor(chance() * (next - done)) : next
    if (chance() < kept) left.write(file, at + done, bytes.subarray(done, cut))
    done = next
  }
}

function failure(code: string, path: string): Error {
  return Object.assign(new Error(`${code}: ${path}`), { code })
}
