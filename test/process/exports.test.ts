/** Exports of a running server, changed as a user does it: `colotap add`, `remove` and `resize`, seen by others' clients. */

import { statSync } from 'node:fs'
import { join } from 'node:path'

import t from 'tap'

import { mustRun, runTool, type Result } from '../support/child.ts'
import { colotap, serveColotap, type ColotapServer } from '../support/colotap.ts'
import { createEmptyImage } from '../support/images.ts'
import { tempDirectory, type Scope } from '../support/scope.ts'

const MIB = 1024 * 1024

/** What other people's client says of the size. */
async function sizeOf(scope: Scope, server: ColotapServer, name: string): Promise<string> {
  return (await mustRun(scope, 'nbdinfo', ['--size', server.uri(name)])).trim()
}

void t.test('a disk is added, grown, shrunk and removed while a server runs', async (t) => {
  const directory = await tempDirectory(t)
  const image = join(directory, 'b.img')
  await createEmptyImage(image, 8 * MIB)
  const server = await serveColotap(t, { exports: { a: 'ram:1M' }, directory })
  const run = (...args: string[]): Promise<Result> =>
    colotap(t, [...args, '--control', server.control])

  t.match(await run('add', `b=aio:${image}`, '--description', 'second'), {
    code: 0,
    stdout: /b is served from now on/,
  })
  t.equal(await sizeOf(t, server, 'b'), String(8 * MIB))
  t.match(await run('add', `b=aio:${image}`), { code: 1, stderr: /is named "b" already/ })
  t.match(await run('add', 'b'), { code: 2, stderr: /not NAME=PIPELINE/ })
  t.match(await run('resize', 'b'), { code: 2, stderr: /EXPORT SIZE is missing/ })
  t.match(await run('resize', 'b', 'large'), { code: 2, stderr: /not a size/ })

  t.match(await run('resize', 'b', '16M'), { code: 0, stdout: /16777216 bytes/ })
  t.equal(await sizeOf(t, server, 'b'), String(16 * MIB))
  t.equal(statSync(image).size, 16 * MIB)
  const info = await mustRun(t, 'qemu-img', ['info', '--output=json', '-f', 'raw', server.uri('b')])
  t.equal((JSON.parse(info) as { 'virtual-size': number })['virtual-size'], 16 * MIB)
  const qemu = ['-f', 'raw', '-c', `write -P 7 ${15 * MIB} 65536`, '-c', 'flush', server.uri('b')]
  t.match(await runTool(t, 'qemu-io', qemu), { code: 0 })

  t.match(await run('remove', 'b'), { code: 0, stdout: /b is closed/ })
  t.match(await run('remove', 'b'), { code: 1, stderr: /no export is named "b"/ })
  t.not((await runTool(t, 'nbdinfo', ['--size', server.uri('b')])).code, 0)
  t.match(
    await runTool(t, 'qemu-io', ['-f', 'raw', '-c', `read -P 7 ${15 * MIB} 65536`, image]),
    { code: 0 },
    'what was written is in the image, and the image is free',
  )
  t.match(await run('status'), { code: 0, stdout: /exports\n +a/ })
  t.match(await server.stop(), { code: 0 })
})
