/**
 * Where an image may find its parent. An image is written by whoever had it last, a guest's administrator perhaps: the
 * name of the parent in it is a wish, and this is who grants it.
 *
 * Invariants:
 *  - A parent is a regular file or a block device that lies in the folder of the image at the top of the chain, or below
 *    it, or in a folder that the operator has named. Symbolic links are followed before this is decided.
 *  - No image is its own ancestor: images are told apart by device and inode, whatever they are called.
 *  - A chain has at most MOST_LAYERS images.
 */

import type { BigIntStats } from 'node:fs'
import { lstat, realpath, stat } from 'node:fs/promises'
import { basename, dirname, isAbsolute, join, sep } from 'node:path'

import { Fault } from '../core/fault.ts'
import type { SettingDescription } from './driver.ts'

/** Far more than toolstacks make (XenServer stops at 30), far less than what exhausts a server. */
export const MOST_LAYERS = 64

/** The setting of every driver whose images have parents. */
export const PARENTS_SETTING: SettingDescription = {
  meaning: 'folders in which parents may lie, besides the folder of the image',
  values: 'paths joined by :',
}

/** The chain from its top to one image, which is about to name its parent. */
export class BackingChain {
  /** The real path of the image at this place. */
  readonly path: string
  readonly #folders: readonly string[]
  readonly #identities: ReadonlySet<string>

  private constructor(path: string, folders: readonly string[], identities: ReadonlySet<string>) {
    this.path = path
    this.#folders = folders
    this.#identities = identities
  }

  /**
   * The chain that begins with the image at `path`.
   * @param parents folders of the `parents` setting
   * @throws Fault when the image or one of the folders is not there
   */
  static async from(path: string, parents: readonly string[]): Promise<BackingChain> {
    const folders = [await realFolder(dirname(path))]
    for (const folder of parents) folders.push(await realFolder(folder))
    const real = join(await realFolder(dirname(path)), basename(path))
    return new BackingChain(real, folders, new Set([identity(await look(path))]))
  }

  /**
   * The chain with one image more: the parent that the image here calls `named`, relative to its own folder.
   * @throws Fault NOT_FOUND where nothing is there, NOT_PERMITTED where it may not be, INVALID for loops and odd files
   */
  async parent(named: string): Promise<BackingChain> {
    if (named === '' || named.includes('\0')) {
      throw new Fault('INVALID', 'the image names its parent by no path', { where: this.path })
    }
    const wanted = isAbsolute(named) ? named : join(dirname(this.path), named)
    const stats = await look(wanted, this.path)
    const path = await this.#admit(wanted, stats)
    const id = identity(stats)
    if (this.#identities.has(id)) {
      throw new Fault('INVALID', `the image is its own ancestor: ${wanted} comes twice`, {
        where: this.path,
        remedy: 'restore the image that names the wrong parent',
      })
    }
    if (this.#identities.size === MOST_LAYERS) {
      throw new Fault('INVALID', `the chain has more than ${MOST_LAYERS} images`, {
        where: this.path,
        remedy: 'commit some of them into their parents',
      })
    }
    return new BackingChain(path, this.#folders, new Set([...this.#identities, id]))
  }

  async #admit(wanted: string, stats: BigIntStats): Promise<string> {
    if (!stats.isFile() && !stats.isBlockDevice()) {
      throw new Fault('INVALID', `the parent ${wanted} is no regular file and no block device`, {
        where: this.path,
      })
    }
    // A device's name is a link into /dev as a rule; where the link lies is what counts for it.
    const viaLink = (await lstat(wanted)).isSymbolicLink() && !stats.isBlockDevice()
    const real = viaLink
      ? await realpath(wanted)
      : join(await realpath(dirname(wanted)), basename(wanted))
    const folder = dirname(real)
    const allowed = this.#folders.some(
      (root) => folder === root || folder.startsWith(root.endsWith(sep) ? root : root + sep),
    )
    if (allowed) return real
    throw new Fault('NOT_PERMITTED', `the image names a parent outside of its folder: ${real}`, {
      where: this.path,
      remedy: `if that is right, allow it with the setting parents=${folder}`,
    })
  }
}

/** The folders of a `parents` setting. */
export function parentFolders(text: string | undefined): readonly string[] {
  return text === undefined ? [] : text.split(':').filter((folder) => folder !== '')
}

/** What tells images apart, whatever their names: two nodes of one device are one. */
function identity(stats: BigIntStats): string {
  return stats.isBlockDevice() ? `device ${stats.rdev}` : `${stats.dev}:${stats.ino}`
}

async function look(path: string, child?: string): Promise<BigIntStats> {
  try {
    return await stat(path, { bigint: true })
  } catch (cause) {
    const { code = 'error' } = cause as NodeJS.ErrnoException
    const missing = code === 'ENOENT' || code === 'ENOTDIR'
    if (child === undefined) {
      const what = missing ? 'the image does not exist' : `cannot look at the image (${code})`
      const remedy = missing ? 'create it with: colotap image create' : 'correct its permissions'
      throw new Fault(missing ? 'NOT_FOUND' : 'NOT_PERMITTED', what, { where: path, remedy, cause })
    }
    const what = missing ? `the parent ${path} does not exist` : `cannot look at ${path} (${code})`
    throw new Fault(missing ? 'NOT_FOUND' : 'NOT_PERMITTED', what, { where: child, cause })
  }
}

async function realFolder(folder: string): Promise<string> {
  try {
    return await realpath(folder)
  } catch (cause) {
    throw new Fault('NOT_FOUND', 'the folder does not exist', { where: folder, cause })
  }
}
