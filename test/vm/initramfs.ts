/**
 * The root file system of all guests: busybox, this machine's programs for file systems and network block devices
 * with their libraries, and kernel modules.
 *
 * Invariant: an archive in the temporary directory is whole, and made of exactly the inputs that its name stands for.
 */

import { createHash } from 'node:crypto'
import { copyFile, mkdir, mkdtemp, rename, rm, stat, symlink, writeFile } from 'node:fs/promises'
import os from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

import { mustRun } from '../support/child.ts'
import type { Scope } from '../support/scope.ts'
import { guestKernel } from './guest-kernel.ts'

/** The virtual hardware of guest.ts; then what scripts may `load`. ext4 is part of the kernel. */
const MODULES = ['virtio_pci', 'virtio_blk', 'virtio_console', 'virtio_net', 'xfs', 'nbd']
const PROGRAMS = ['mkfs.ext4', 'e2fsck', 'mkfs.xfs', 'xfs_repair', 'nbd-client', 'fstrim']
const INIT = fileURLToPath(new URL('guest-init.sh', import.meta.url))

export interface BootFiles {
  readonly kernel: string
  readonly initramfs: string
}

/** What a guest boots from; the archive is made once and kept for later runs. */
export async function bootFiles(scope: Scope): Promise<BootFiles> {
  const { image, modules } = await guestKernel(MODULES)
  const programs = await Promise.all(PROGRAMS.map((program) => whereIs(scope, program)))
  const libraries = await librariesOf(scope, programs)
  const files = new Map<string, string>([
    [INIT, 'init'],
    [await whereIs(scope, 'busybox'), 'bin/busybox'],
    ...[...modules.values()].flat().map((module) => [module, inGuest(module)] as const),
    ...[...programs, ...libraries].map((file) => [file, file.slice(1)] as const),
  ])
  const orders = [...modules].map(([name, needed]) => ({
    to: `modules/${name}.order`,
    text: needed.map((module) => `${path.basename(module)}\n`).join(''),
  }))
  const hash = createHash('sha256').update(JSON.stringify(orders))
  for (const [from, to] of files) {
    const { size, mtimeMs } = await stat(from)
    hash.update(JSON.stringify([from, to, size, mtimeMs]))
  }
  const name = `colotap-guest-${hash.digest('hex').slice(0, 16)}.cpio`
  const initramfs = path.join(os.tmpdir(), name)
  const made = await stat(initramfs).catch(() => undefined)
  if (made === undefined) await pack(scope, initramfs, files, orders)
  return { kernel: image, initramfs }
}

async function pack(
  scope: Scope,
  archive: string,
  files: ReadonlyMap<string, string>,
  texts: readonly { readonly to: string; readonly text: string }[],
): Promise<void> {
  const work = await mkdtemp(`${archive}-`)
  try {
    const root = path.join(work, 'root')
    for (const [from, to] of files) {
      const target = path.join(root, to)
      await mkdir(path.dirname(target), { recursive: true })
      await copyFile(from, target)
    }
    await symlink('busybox', path.join(root, 'bin', 'sh'))
    for (const { to, text } of texts) await writeFile(path.join(root, to), text)
    const command = 'find . -print0 | cpio --null --create --format=newc --owner=0:0 --quiet'
    await mustRun(scope, 'sh', ['-c', `chmod 755 init && ${command} >../archive`], { cwd: root })
    await rename(path.join(work, 'archive'), archive)
  } finally {
    await rm(work, { recursive: true, force: true })
  }
}

function inGuest(module: string): string {
  return `modules/${path.basename(module)}`
}

/** Programs for the administrator are not in the search path of every user. */
async function whereIs(scope: Scope, program: string): Promise<string> {
  const search = `${process.env['PATH'] ?? ''}:/usr/sbin:/sbin`
  const options = { env: { PATH: search } }
  const found = await mustRun(scope, 'sh', ['-c', `command -v ${program}`], options).catch(
    () => undefined,
  )
  if (found === undefined) throw new Error(`no ${program}: run scripts/install-test-tools.sh`)
  return found.trim()
}

/** Paths of the libraries and the loader that the programs are linked with, as ldd prints them. */
async function librariesOf(scope: Scope, programs: readonly string[]): Promise<string[]> {
  const listing = await mustRun(scope, 'ldd', programs)
  const paths = [...listing.matchAll(/(?:=> )?(\/\S+) \(0x/g)].map(([, file]) => file ?? '')
  return [...new Set(paths)].sort()
}
