import t from 'tap'
import { mkdir } from 'node:fs/promises'
import net from 'node:net'
import path from 'node:path'
import type { Result } from '../support/child.ts'
import { colotap, serveColotap } from '../support/colotap.ts'
import { createEmptyImage } from '../support/images.ts'
import { freePorts, tempDirectory, type Scope } from '../support/scope.ts'
import { CLEAN_EXIT } from '../support/served-disk.ts'

/** A server that may not start, each for one reason; `says` is what its operator must be told. */
interface Refusal {
  readonly why: string
  readonly args: (directory: string) => string[]
  readonly says: readonly RegExp[]
}

const SIZE = 1024 * 1024

const REFUSALS: readonly Refusal[] = [
  {
    why: 'the image does not exist',
    args: (directory) => ['--export', `disk=aio:${directory}/missing.img`],
    says: [/missing\.img/, /no such|not exist|not found/i],
  },
  {
    why: 'the image is a directory',
    args: (directory) => ['--export', `disk=aio:${directory}/folder`],
    says: [/folder/, /directory|not a (regular )?file/i],
  },
  {
    why: 'the driver is unknown',
    args: () => ['--export', 'disk=floppy:/somewhere'],
    says: [/floppy/, /aio/, /ram/],
  },
  {
    why: 'a key is unknown',
    args: (directory) => ['--export', `disk=aio:${directory}/disk.img?colour=red`],
    says: [/colour/],
  },
  {
    why: 'the size of a ram disk is no size',
    args: () => ['--export', 'disk=ram:large'],
    says: [/large/],
  },
  {
    why: 'two exports have one name',
    args: () => ['--export', 'disk=ram:1M', '--export', 'disk=ram:1M'],
    says: [/disk/],
  },
  {
    why: 'two exports have one image',
    args: (directory) => [
      ...['--export', `a=aio:${directory}/disk.img`, '--export', `b=aio:${directory}/disk.img`],
    ],
    says: [/disk\.img/],
  },
  {
    why: 'an export has no pipeline',
    args: () => ['--export', 'disk'],
    says: [/disk/, /NAME=PIPELINE/],
  },
  {
    why: 'the listening address makes no sense',
    args: () => ['--export', 'disk=ram:1M', '--listen', 'carrier-pigeon:7'],
    says: [/carrier-pigeon/],
  },
  {
    why: 'the directory of the socket does not exist',
    args: (directory) => ['--export', 'disk=ram:1M', '--listen', `unix:${directory}/no/where.sock`],
    says: [/no\/where\.sock/],
  },
]

for (const { why, args, says } of REFUSALS) {
  void t.test(`serve does not start when ${why}, and says so in one line`, async (t) => {
    const directory = await tempDirectory(t)
    await mkdir(path.join(directory, 'folder'))
    await createEmptyImage(path.join(directory, 'disk.img'), SIZE)
    const listen = ['--listen', `unix:${directory}/nbd.sock`]
    const control = ['--control', `${directory}/control.sock`]
    const given = args(directory)
    const result = await colotap(t, [
      'serve',
      ...given,
      ...(given.includes('--listen') ? [] : listen),
      ...control,
    ])
    isRefusal(t, result, says)
  })
}

void t.test(
  'an image that another colotap serves is refused, and its process is named',
  async (t) => {
    const directory = await tempDirectory(t)
    const image = path.join(directory, 'disk.img')
    await createEmptyImage(image, SIZE)
    const first = await serveColotap(t, { exports: { disk: `aio:${image}` }, directory })
    const second = await colotap(t, [
      ...['serve', '--export', `disk=aio:${image}`],
      ...['--listen', `unix:${directory}/other.sock`, '--control', `${directory}/other.control`],
    ])
    isRefusal(t, second, [/disk\.img/, new RegExp(String.raw`\b${first.child.pid}\b`)])
    t.same(await first.stop(), CLEAN_EXIT)

    const third = await serveColotap(t, { exports: { disk: `aio:${image}` }, directory })
    t.same(await third.stop(), CLEAN_EXIT, 'the lock ends with its holder')
  },
)

void t.test('a socket that another colotap listens on is left to it', async (t) => {
  const first = await serveColotap(t, { exports: { disk: 'ram:1M' } })
  const second = await colotap(t, [
    ...['serve', '--export', 'disk=ram:1M', '--listen', `unix:${first.socket}`],
    ...['--control', `${first.control}.other`],
  ])
  isRefusal(t, second, [/nbd\.sock/])
  t.equal(await connects(first.socket), true, 'the first still serves')
  t.same(await first.stop(), CLEAN_EXIT)
})

void t.test('a control socket that another colotap listens on is left to it', async (t) => {
  const first = await serveColotap(t, { exports: { disk: 'ram:1M' } })
  const second = await colotap(t, [
    ...['serve', '--export', 'disk=ram:1M', '--listen', `unix:${first.socket}.other`],
    ...['--control', first.control],
  ])
  isRefusal(t, second, [/control\.sock/])
  t.equal(await connects(first.control), true, 'the first still answers')
  t.same(await first.stop(), CLEAN_EXIT)
})

void t.test('a stale socket of a killed colotap does not stop the next one', async (t) => {
  const directory = await tempDirectory(t)
  const first = await serveColotap(t, { exports: { disk: 'ram:1M' }, directory })
  await first.child.kill()
  const second = await serveColotap(t, { exports: { disk: 'ram:1M' }, directory })
  t.equal(await connects(second.socket), true)
  t.same(await second.stop(), CLEAN_EXIT)
})

void t.test('a busy TCP port is refused and named', async (t) => {
  const directory = await tempDirectory(t)
  const [port] = await freePorts(1)
  await listen(t, port!)
  const result = await colotap(t, [
    ...['serve', '--export', 'disk=ram:1M', '--listen', `tcp:127.0.0.1:${port!}`],
    ...['--control', `${directory}/control.sock`],
  ])
  isRefusal(t, result, [new RegExp(String(port)), /in use|busy|taken/i])
})

/** A failed start: no `ready`, exit 1 or 2, one sentence on stderr that has all of `says`, no stack trace. */
function isRefusal(t: Tap, result: Result, says: readonly RegExp[]): void {
  t.ok(result.code === 1 || result.code === 2, `exit ${String(result.code ?? result.signal)}`)
  t.equal(result.stdout, '', 'it does not claim to be ready')
  const lines = result.stderr.split('\n').filter((line) => line !== '' && !line.startsWith('{'))
  t.equal(lines.length, 1, `one line for people:\n${result.stderr}`)
  for (const expected of says) t.match(lines[0], expected)
}
type Tap = Pick<typeof t, 'ok' | 'equal' | 'match'>

function connects(socket: string): Promise<boolean> {
  return new Promise((resolve) => {
    const client = net.connect(socket)
    client.once('connect', () => {
      client.destroy()
      resolve(true)
    })
    client.once('error', () => resolve(false))
  })
}

function listen(scope: Scope, port: number): Promise<void> {
  const server = net.createServer()
  scope.teardown(() => server.close())
  return new Promise((resolve, reject) => {
    server.once('error', reject)
    server.listen(port, '127.0.0.1', () => resolve())
  })
}
