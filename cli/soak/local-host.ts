/**
 * One of the two hosts of a soak on this machine: a server process that is killed, stopped and started again, and the
 * folder with its images and its journal.
 */

import path from 'node:path'

import fs from 'fs-extra'

import { ServerProcess, stateFolder } from '../server-process.ts'
import { GroupControl, type Side } from './side.ts'
import { Violation } from './violation.ts'
import type { ListenAddress } from '../../nbd/address.ts'

/** The name of the group. */
const GROUP = 'soak'

/** What a host needs to know of the pair. */
export interface Wiring {
  readonly mode: 'colo' | 'remus'
  /** Where the secondary listens, or where the primary finds it. */
  readonly port: number
  /** Further settings of the pipelines, such as `timeout=1000`. */
  readonly settings: readonly string[]
}

export class LocalHost implements Side {
  readonly name: string
  readonly #folder: string
  readonly #disks: readonly string[]
  #server: ServerProcess | undefined
  #control: GroupControl | undefined
  #trouble: string | undefined
  #start: { readonly role: 'primary' | 'secondary'; readonly wiring: Wiring } | undefined

  /** @param folder of the pair; the host has one of its own in it */
  constructor(name: string, folder: string, disks: readonly string[]) {
    this.name = name
    this.#folder = path.join(folder, name)
    this.#disks = disks
  }

  get nbd(): ListenAddress {
    return { kind: 'unix', path: this.#running.nbdSocket }
  }

  get control(): GroupControl {
    if (this.#control === undefined) throw new Violation(`the ${this.name} host is not there`)
    return this.#control
  }

  /** Why it ended though nobody had told it to. */
  get trouble(): string | undefined {
    return this.#trouble
  }

  image(disk: string): string {
    return path.join(this.#folder, `${disk}.img`)
  }

  /** Makes its images: empty ones of so many bytes, by disk. */
  async makeImages(sizes: ReadonlyMap<string, number>): Promise<void> {
    for (const [disk, size] of sizes) {
      await fs.createFile(this.image(disk))
      await fs.truncate(this.image(disk), size)
    }
  }

  /** Forgets all that it has, and takes the images of another host. */
  async copyFrom(other: LocalHost): Promise<void> {
    for (const disk of this.#disks) await fs.copy(other.image(disk), this.image(disk))
  }

  /** Removes its journal: only a pair that starts anew from identical images may do that. */
  async forget(): Promise<void> {
    await fs.remove(stateFolder(this.name, this.#folder))
  }

  async start(role: 'primary' | 'secondary', wiring: Wiring): Promise<void> {
    this.#start = { role, wiring }
    const query = [`role=${role}`, `group=${GROUP}`, ...wiring.settings].join('&')
    const layer = `${wiring.mode}:127.0.0.1:${wiring.port}?${query}`
    const exports = Object.fromEntries(
      this.#disks.map((disk) => [disk, `${layer}|aio:${encodeTarget(this.image(disk))}`]),
    )
    const server = await ServerProcess.start(this.name, this.#folder, exports, { ownGroup: true })
    this.#server = server
    void server.ended.then(() => {
      if (this.#server !== server) return
      this.#trouble = `the ${this.name} host ended by itself with ${server.exit}: ${server.lastWords}`
    })
    this.#control = await GroupControl.connect(server.controlSocket)
  }

  /** Starts it again on what it has left. */
  async startAgain(): Promise<void> {
    const { role, wiring } = this.#start ?? {}
    if (role === undefined || wiring === undefined)
      throw new Violation(`the ${this.name} host never ran`)
    await this.start(role, wiring)
  }

  /** Like the loss of its power. */
  kill(): Promise<void> {
    return this.#end('SIGKILL')
  }

  /** An orderly end, which has to succeed. */
  async stop(): Promise<void> {
    const server = this.#running
    await this.#end('SIGTERM')
    if (!server.endedWell)
      throw new Violation(
        `the ${this.name} host did not end well (${server.exit}): ${server.lastWords}`,
      )
  }

  /** Holds it without ending it, until hang(false). */
  hang(hangs: boolean): void {
    this.#running.signal(hangs ? 'SIGSTOP' : 'SIGCONT')
  }

  async #end(signal: 'SIGKILL' | 'SIGTERM'): Promise<void> {
    const server = this.#server
    const control = this.#control
    this.#server = undefined
    this.#control = undefined
    await server?.end(signal)
    await control?.close()
  }

  get #running(): ServerProcess {
    if (this.#server === undefined) throw new Violation(`the ${this.name} host is not there`)
    return this.#server
  }
}

/** What would be read as syntax in a pipeline (docs/drivers.md). */
function encodeTarget(target: string): string {
  return target.replaceAll(/[%|?&]/g, encodeURIComponent)
}
