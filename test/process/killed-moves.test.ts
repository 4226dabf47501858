/**
 * A server that is killed at any moment of a snapshot and a move leaves images that open, with every flushed byte: the overlay
 * where there is one, else the base.
 *
 * KILL_ROUNDS and KILL_SEED choose how many moments and which ones.
 */

import { existsSync } from 'node:fs'
import path from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import t from 'tap'
import { below, seededRandom } from '../../core/seeded-random.ts'
import { NbdClient } from '../../nbd/client.ts'
import { runTool } from '../support/child.ts'
import { colotap, serveColotap, type ColotapServer } from '../support/colotap.ts'
import { killRounds } from '../support/kill-rounds.ts'
import { ProgramScope, tempDirectory, type Scope } from '../support/scope.ts'

const BLOCK = 4096
const BLOCKS = 256
/** The longest time, in milliseconds, from the start of the moves to the kill. */
const LATEST = 1500

/** Writes blocks one after the other, each with a flush, and remembers what was flushed. */
class FlushingGuest {
  readonly flushed = Buffer.alloc(BLOCKS)
  /** The block that was under way at the end, and what it was to become. */
  writing: { readonly block: number; readonly value: number } | undefined
  readonly #client: NbdClient

  constructor(client: NbdClient) {
    this.#client = client
  }

  async run(): Promise<void> {
    for (let count = 0; ; count += 1) {
      const block = (count * 37) % BLOCKS
      const value = 1 + (count % 255)
      this.writing = { block, value }
      await this.#client.write(Buffer.alloc(BLOCK, value), block * BLOCK)
      await this.#client.flush()
      this.flushed[block] = value
    }
  }
}

async function attach({ socket }: ColotapServer): Promise<NbdClient> {
  return NbdClient.connect({ address: { kind: 'unix', path: socket }, exportName: 'disk' })
}

/** Snapshots and moves on, image after image, until the server is gone. */
async function move(scope: Scope, server: ColotapServer, chain: string[]): Promise<void> {
  const qmp = await server.qmp()
  for (;;) {
    const next = `${chain[0]!}.${chain.length}`
    const { code } = await colotap(scope, [
      'image',
      'snapshot',
      `qcow:${chain.at(-1)!}`,
      '--to',
      `qcow:${next}`,
    ])
    if (code !== 0) return
    chain.push(next)
    await qmp.execute('export-reopen', { pipeline: `qcow:${next}` })
  }
}

async function round(seed: number): Promise<string | undefined> {
  const scope = new ProgramScope()
  const random = seededRandom(seed)
  try {
    const directory = await tempDirectory(scope)
    const base = path.join(directory, 'base')
    await colotap(scope, ['image', 'create', `qcow:${base}`, '--size', String(BLOCKS * BLOCK)])
    const server = await serveColotap(scope, { exports: { disk: `qcow:${base}` }, directory })
    const client = await attach(server)
    const guest = new FlushingGuest(client)
    const chain = [base]
    // Both end with the server.
    const running = Promise.allSettled([guest.run(), move(scope, server, chain)])
    // The moment is what is being chosen: nothing is awaited by this.
    await delay(below(random, LATEST))
    await server.child.kill()
    await running
    return await judge(scope, directory, chain, guest)
  } finally {
    await scope.end()
  }
}

/** @returns what is wrong with what was left */
async function judge(
  scope: Scope,
  directory: string,
  chain: readonly string[],
  guest: FlushingGuest,
): Promise<string | undefined> {
  const images = chain.filter((image) => existsSync(image))
  for (const image of images) {
    const { code, stdout, stderr } = await runTool(scope, 'qemu-img', [
      'check',
      '-f',
      'qcow2',
      image,
    ])
    // 3: leaked clusters, which cost space and nothing else.
    if (code !== 0 && code !== 3) return `${image}: ${stdout}${stderr}`
  }
  const exports = { disk: `qcow:${images.at(-1)!}` }
  const server = await serveColotap(scope, { exports, directory })
  const client = await attach(server)
  const found = Buffer.alloc(BLOCK)
  for (let block = 0; block < BLOCKS; block += 1) {
    await client.read(found, block * BLOCK)
    const writing = guest.writing?.block === block ? guest.writing.value : undefined
    const right = [guest.flushed[block], writing].some((value) =>
      found.every((byte) => byte === value),
    )
    if (!right)
      return `block ${block} of ${images.length} images is ${found[0]}, not ${guest.flushed[block]}`
  }
  await client.disconnect()
  const { code } = await server.stop()
  return code === 0 ? undefined : `the server ended with ${code}`
}

killRounds(t, 'a server killed amid snapshots and moves loses no flushed byte', 10, round)
