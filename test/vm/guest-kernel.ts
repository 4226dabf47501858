/** The kernel that guests run, which scripts/install-guest-kernel.sh has fetched, and its modules in the order to load them. */

import { readFile, readdir } from 'node:fs/promises'
import os from 'node:os'
import path from 'node:path'

export interface GuestKernel {
  readonly image: string
  /** Paths of each module asked for and of all that it depends on, each after those that it needs. */
  readonly modules: ReadonlyMap<string, readonly string[]>
}

/** @param wanted names of modules that the kernel does not have built in */
export async function guestKernel(wanted: readonly string[]): Promise<GuestKernel> {
  const cache = process.env['XDG_CACHE_HOME'] ?? path.join(os.homedir(), '.cache')
  const root = path.join(cache, 'colotap-tests', 'guest-kernel')
  const boot = path.join(root, 'boot')
  const image = (await readdir(boot).catch(() => [])).find((name) => name.startsWith('vmlinuz-'))
  if (image === undefined)
    throw new Error(`no kernel for guests in ${boot}: run scripts/install-test-tools.sh`)
  return {
    image: path.join(boot, image),
    modules: await inLoadOrder(path.join(root, 'lib', 'modules'), wanted),
  }
}

async function inLoadOrder(
  folder: string,
  wanted: readonly string[],
): Promise<Map<string, string[]>> {
  const files = await readdir(folder, { recursive: true })
  const paths = new Map(
    files
      .filter((file) => file.endsWith('.ko'))
      .map((file) => [path.basename(file, '.ko'), path.join(folder, file)]),
  )
  const add = async (name: string, ordered: Set<string>): Promise<Set<string>> => {
    const file = paths.get(name)
    if (file === undefined) throw new Error(`the guests' kernel has no module ${name}`)
    if (ordered.has(file)) return ordered
    for (const needed of await dependencies(file)) await add(needed, ordered)
    return ordered.add(file)
  }
  const orders = new Map<string, string[]>()
  for (const name of wanted) orders.set(name, [...(await add(name, new Set()))])
  return orders
}

/** A module names what it needs in its section .modinfo, as `depends=a,b` between zero bytes. */
async function dependencies(file: string): Promise<string[]> {
  const text = (await readFile(file)).toString('latin1')
  const names = /\0depends=([^\0]*)\0/.exec(text)?.[1] ?? ''
  return names.split(',').filter((name) => name !== '')
}
