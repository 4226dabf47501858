/**
 * Two hosts on this machine that replicate one group over a faulty link.
 *
 * Invariant: whatever happened to it, close() leaves no process and no socket behind.
 */

import { assert } from '../../core/assert.ts'
import { Fault } from '../../core/fault.ts'
import type { Random } from '../../core/seeded-random.ts'
import { freePort } from '../server-process.ts'
import { FaultyLink } from './faulty-link.ts'
import { LocalHost } from './local-host.ts'
import type { SoakDisk } from './soak-disk.ts'

export interface LocalPairOptions {
  readonly folder: string
  readonly mode: 'colo' | 'remus'
  readonly disks: readonly SoakDisk[]
  readonly settings: readonly string[]
  readonly random: Random
}

export class LocalPair {
  readonly mode: 'colo' | 'remus'
  readonly #options: LocalPairOptions
  #primary: LocalHost
  #secondary: LocalHost
  #link: FaultyLink | undefined
  #closed = false

  private constructor(options: LocalPairOptions) {
    this.#options = options
    this.mode = options.mode
    const names = options.disks.map(({ name }) => name)
    this.#primary = new LocalHost('east', options.folder, names)
    this.#secondary = new LocalHost('west', options.folder, names)
  }

  /** Makes equal, empty images on both hosts; start() does the rest. */
  static async make(options: LocalPairOptions): Promise<LocalPair> {
    const pair = new LocalPair(options)
    const sizes = new Map(options.disks.map(({ name, size }) => [name, size]))
    for (const host of [pair.#primary, pair.#secondary]) await host.makeImages(sizes)
    return pair
  }

  get primary(): LocalHost {
    return this.#primary
  }

  get secondary(): LocalHost {
    return this.#secondary
  }

  get link(): FaultyLink {
    assert(this.#link !== undefined, 'a pair has a link once it was started')
    return this.#link
  }

  /** Why a host ended though nobody had told it to. */
  get trouble(): string | undefined {
    return this.#primary.trouble ?? this.#secondary.trouble
  }

  /** Starts both hosts and resolves when they are protected. */
  async start(): Promise<void> {
    const { mode, settings, random } = this.#options
    const port = await freePort()
    this.#link = await FaultyLink.listen(port, random)
    await this.#secondary.start('secondary', { mode, settings, port })
    this.#checkOpen()
    await this.#primary.start('primary', { mode, settings, port: this.#link.port })
    this.#checkOpen()
    await this.protection()
  }

  /**
   * After a takeover, with both hosts at rest: the survivor becomes the primary of a new pair that starts from identical
   * images. What one host knows of the other is given up, because a primary that was lost cannot join again yet.
   */
  async startAnew(): Promise<void> {
    await this.#link?.close()
    const [survivor, other] = [this.#secondary, this.#primary]
    await other.copyFrom(survivor)
    for (const host of [survivor, other]) await host.forget()
    this.#primary = survivor
    this.#secondary = other
    await this.start()
  }

  /** Resolves when the pair is protected. */
  async protection(): Promise<void> {
    await this.#primary.control.until('protection', ({ protection }) => protection === 'protected')
  }

  /** May be called at any time and again; what is starting meanwhile ends with the next call. */
  async close(): Promise<void> {
    this.#closed = true
    for (const host of [this.#primary, this.#secondary]) await host.kill()
    await this.#link?.close()
  }

  #checkOpen(): void {
    if (this.#closed) throw new Fault('SHUTDOWN', 'the pair was closed while it was being started')
  }
}
