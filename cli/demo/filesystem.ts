/**
 * The guest's filesystem in the demo: a real ext4 made with e2fsprogs, without mounting and without root, and the
 * block writes by which a guest takes it from one consistent state to the next. Without e2fsprogs: numbered blocks.
 *
 * Invariant: replaying the changes of states 1..n over the initial image gives a disk with the digest of state n.
 */

import { execFile } from 'node:child_process'
import { createHash } from 'node:crypto'
import path from 'node:path'
import { promisify } from 'node:util'

import fs from 'fs-extra'

import { Fault } from '../../core/fault.ts'
import { KiB, MiB } from '../../core/units.ts'

const run = promisify(execFile)

export const FILESYSTEM_SIZE = 24 * MiB
const BLOCK = 4 * KiB
const FOLDERS = ['', '/sbin/', '/usr/sbin/', '/usr/local/sbin/']

interface BlockWrite {
  readonly at: number
  readonly bytes: Buffer
}

/** What a guest changes between two checkpoints, and what the disk is then. */
export interface DiskState {
  readonly label: string
  readonly writes: readonly BlockWrite[]
  readonly digest: string
}

export interface Filesystem {
  readonly description: string
  /** The image that both hosts start from. */
  readonly image: string
  readonly states: readonly DiskState[]
  /** Looks at an image that should be in state `index`. @returns what was found, a line each; @throws Fault on any violation */
  check(image: string, index: number): Promise<readonly string[]>
}

/** Makes the initial image in `folder` and `count` states after it. */
export async function makeFilesystem(folder: string, count: number): Promise<Filesystem> {
  const mke2fs = await findTool('mke2fs')
  const debugfs = await findTool('debugfs')
  const e2fsck = await findTool('e2fsck')
  if (mke2fs === undefined || debugfs === undefined || e2fsck === undefined)
    return numberedBlocks(folder, count)
  return ext4(folder, count, { mke2fs, debugfs, e2fsck })
}

interface Tools {
  readonly mke2fs: string
  readonly debugfs: string
  readonly e2fsck: string
}

async function ext4(folder: string, count: number, tools: Tools): Promise<Filesystem> {
  const image = path.join(folder, 'initial.img')
  const scratch = path.join(folder, 'scratch.img')
  const files = path.join(folder, 'files')
  await fs.ensureDir(files)
  await fs.outputFile(path.join(files, 'README'), text('The disk before the first checkpoint.', 20))
  await makeEmpty(image)
  await run(tools.mke2fs, ['-q', '-F', '-t', 'ext4', '-d', files, image])
  let before = await fs.readFile(image)
  await fs.outputFile(scratch, before)
  const states: DiskState[] = []
  for (let number = 1; number <= count; number += 1) {
    const name = `chapter-${number}.txt`
    await fs.outputFile(path.join(files, name), text(`Chapter ${number}.`, 4000 + number * 500))
    await fs.outputFile(
      path.join(files, 'ledger.txt'),
      text(`Ledger, written ${number} times.`, 2000),
    )
    const commands = [
      ...(number > 1 ? ['rm ledger.txt'] : []),
      `write ${name} ${name}`,
      'write ledger.txt ledger.txt',
    ]
    for (const command of commands)
      await run(tools.debugfs, ['-w', '-R', command, scratch], { cwd: files })
    const after = await fs.readFile(scratch)
    states.push({ label: name, writes: differences(before, after), digest: digest(after) })
    before = after
  }
  const check = (found: string, index: number): Promise<readonly string[]> =>
    checkExt4(found, index, files, count, tools)
  return { description: 'ext4, made with mke2fs', image, states, check }
}

async function checkExt4(
  image: string,
  index: number,
  files: string,
  count: number,
  tools: Tools,
): Promise<readonly string[]> {
  await run(tools.e2fsck, ['-f', '-n', image]).catch((error: unknown) => {
    throw new Fault('IO', 'e2fsck found errors', { where: image, cause: error })
  })
  for (let number = 1; number <= count; number += 1) {
    const name = `chapter-${number}.txt`
    const { stdout } = await run(tools.debugfs, ['-R', `cat ${name}`, image], {
      maxBuffer: 16 * MiB,
    })
    const expected = number <= index + 1 ? await fs.readFile(path.join(files, name), 'utf8') : ''
    if (stdout !== expected)
      throw new Fault('IO', `${name} is not what it should be after checkpoint ${index + 1}`)
  }
  return ['e2fsck -fn: clean', `files: chapter-1 to chapter-${index + 1} whole, none later`]
}

async function numberedBlocks(folder: string, count: number): Promise<Filesystem> {
  const image = path.join(folder, 'initial.img')
  await makeEmpty(image)
  const disk = Buffer.alloc(FILESYSTEM_SIZE)
  const states: DiskState[] = []
  for (let number = 1; number <= count; number += 1) {
    const writes: BlockWrite[] = []
    for (let index = 0; index < 200; index += 1) {
      const at = ((index * 7919 + number * 104_729) % (FILESYSTEM_SIZE / BLOCK)) * BLOCK
      const bytes = Buffer.alloc(BLOCK, `state ${number}, block ${index}\n`)
      bytes.copy(disk, at)
      writes.push({ at, bytes })
    }
    states.push({ label: `state ${number}`, writes, digest: digest(disk) })
  }
  const description = 'numbered blocks (install e2fsprogs to see a real ext4)'
  return { description, image, states, check: () => Promise.resolve([]) }
}

export function digest(disk: Buffer): string {
  return createHash('sha256').update(disk).digest('hex')
}

async function makeEmpty(image: string): Promise<void> {
  await fs.createFile(image)
  await fs.truncate(image, FILESYSTEM_SIZE)
}

function differences(before: Buffer, after: Buffer): BlockWrite[] {
  const writes: BlockWrite[] = []
  for (let at = 0; at < after.length; at += BLOCK) {
    const bytes = after.subarray(at, at + BLOCK)
    if (!bytes.equals(before.subarray(at, at + BLOCK))) writes.push({ at, bytes })
  }
  return writes
}

function text(title: string, lines: number): string {
  return Array.from(
    { length: lines },
    (_, line) => `${title} Line ${line + 1} of ${lines}.\n`,
  ).join('')
}

async function findTool(name: string): Promise<string | undefined> {
  for (const folder of FOLDERS) {
    // All three print their version and exit with 0 for -V.
    const found = await run(`${folder}${name}`, ['-V']).then(
      () => true,
      () => false,
    )
    if (found) return `${folder}${name}`
  }
  return undefined
}
