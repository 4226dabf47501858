/**
 * Backends that take whole blocks alone, and one that fails now and then: a client may ask for any bytes, and gets what
 * it asked for or an error of NBD's, never something else.
 *
 * REQUESTS and REQUESTS_SEED choose how many random requests and which.
 */

import { readFile } from 'node:fs/promises'
import path from 'node:path'

import t, { type Test } from 'tap'

import { Fault } from '../../core/fault.ts'
import { below, seededRandom } from '../../core/seeded-random.ts'
import { NbdClient } from '../../nbd/client.ts'
import { startChild } from '../support/child.ts'
import { serveColotap } from '../support/colotap.ts'
import { createSparseImage, difference, imageDifference } from '../support/images.ts'
import { untilConnects } from '../support/listening.ts'
import { runRandomRequests } from '../support/random-requests.ts'
import { tempDirectory } from '../support/scope.ts'
import { CLEAN_EXIT } from '../support/served-disk.ts'

const SIZE = 4 * 1024 * 1024
const REQUESTS = Number(process.env['REQUESTS'] ?? 1000)
const SEED = Number(process.env['REQUESTS_SEED'] ?? 1)

async function nbdkit(t: Test, image: string, filter: readonly string[]): Promise<string> {
  const socket = path.join(await tempDirectory(t), 'nbdkit.sock')
  const [name = '', ...settings] = filter
  const server = startChild(t, 'nbdkit', [
    ...['--foreground', '--exit-with-parent', `--unix=${socket}`, `--filter=${name}`],
    ...['file', image, ...settings],
  ])
  await untilConnects(server, socket)
  return socket
}

/** Serves nothing but whole blocks of 4096 bytes, and refuses anything else. */
async function wholeBlocks(t: Test, image: string): Promise<string> {
  return nbdkit(t, image, [
    'blocksize-policy',
    ...['blocksize-minimum=4096', 'blocksize-preferred=4096', 'blocksize-error-policy=error'],
  ])
}

interface Demanding {
  readonly name: string
  readonly pipeline: (t: Test, image: string) => Promise<string>
}

const DEMANDING: readonly Demanding[] = [
  {
    name: 'aio past the page cache',
    pipeline: (_, image) => Promise.resolve(`aio:${image}?direct=on`),
  },
  {
    name: 'an NBD server of whole blocks of 4 KiB',
    pipeline: async (t, image) => `nbd:unix:${await wholeBlocks(t, image)}`,
  },
]

for (const { name, pipeline } of DEMANDING) {
  void t.test(`${name} serves requests of any alignment`, async (t) => {
    const image = path.join(await tempDirectory(t), 'disk.img')
    const model = await createSparseImage(image, SIZE)
    const server = await serveColotap(t, { exports: { disk: await pipeline(t, image) } })
    const client = await NbdClient.connect({
      address: { kind: 'unix', path: server.socket },
      exportName: 'disk',
    })
    await runRandomRequests(client, model, REQUESTS, SEED)
    const whole = Buffer.alloc(SIZE)
    await client.read(whole, 0)
    t.equal(difference(whole, model), undefined, 'what is served')
    await client.disconnect()
    t.same(await server.stop(), CLEAN_EXIT)
    t.equal(await imageDifference(image, model), undefined, 'what is stored')
  })
}

void t.test(
  'that NBD server refuses what is not aligned, so that it was colotap who aligned',
  async (t) => {
    const image = path.join(await tempDirectory(t), 'disk.img')
    await createSparseImage(image, SIZE)
    const socket = await wholeBlocks(t, image)
    const client = await NbdClient.connect({
      address: { kind: 'unix', path: socket },
      exportName: '',
    })
    await client.read(Buffer.alloc(4096), 4096)
    await t.rejects(client.read(Buffer.alloc(512), 512), { code: 'INVALID' })
    await client.disconnect()
  },
)

void t.test(
  'a read that fails below is an error or right, never a success with other bytes',
  async (t) => {
    const image = path.join(await tempDirectory(t), 'disk.img')
    const content = await createSparseImage(image, SIZE)
    const socket = await nbdkit(t, image, ['error', 'error-pread-rate=30%', 'error=EIO'])
    const server = await serveColotap(t, { exports: { disk: `nbd:unix:${socket}` } })
    const client = await NbdClient.connect({
      address: { kind: 'unix', path: server.socket },
      exportName: 'disk',
    })
    const random = seededRandom(SEED)
    let failures = 0
    for (let count = 0; count < 300; count += 1) {
      const at = below(random, SIZE - 1)
      const length = 1 + below(random, Math.min(200_000, SIZE - at))
      const found = Buffer.alloc(length)
      try {
        await client.read(found, at)
        const expected = content.subarray(at, at + length)
        if (!found.equals(expected))
          t.fail(`${length} bytes at ${at}: ${String(difference(found, expected))}`)
      } catch (error) {
        failures += 1
        if (!(error instanceof Fault) || error.code !== 'IO') throw error
      }
    }
    t.ok(failures > 30 && failures < 270, `${failures} of 300 reads failed`)
    t.ok((await readFile(image)).equals(content))
    await client.disconnect()
  },
)
