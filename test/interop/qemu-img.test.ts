import t from 'tap'
import { readFile } from 'node:fs/promises'
import path from 'node:path'
import { mustRun, runTool } from '../support/child.ts'
import { createSparseImage, difference, imageDifference } from '../support/images.ts'
import { BACKENDS, CLEAN_EXIT, serveDisk } from '../support/served-disk.ts'

const SIZE = 24 * 1024 * 1024

for (const backend of BACKENDS) {
  void t.test(`qemu-img copies an image in and out of ${backend} unchanged`, async (t) => {
    const { server, uri, directory, image } = await serveDisk(t, backend, SIZE)
    const source = path.join(directory, 'source.raw')
    const content = await createSparseImage(source, SIZE)

    await mustRun(t, 'qemu-img', ['convert', '-n', '-f', 'raw', '-O', 'raw', source, uri])
    const compared = await runTool(t, 'qemu-img', [
      ...['compare', '-f', 'raw', '-F', 'raw'],
      ...[source, uri],
    ])
    t.match(compared, { code: 0, stdout: /identical/ })

    const back = path.join(directory, 'back.raw')
    await mustRun(t, 'qemu-img', ['convert', '-f', 'raw', '-O', 'raw', uri, back])
    t.equal(difference(await readFile(back), content), undefined)

    t.same(await server.stop(), CLEAN_EXIT)
    if (image !== undefined) t.equal(await imageDifference(image, content), undefined)
  })

  void t.test(`qemu-img map sees data and holes of ${backend}`, async (t) => {
    const { server, uri } = await serveDisk(t, backend, SIZE)
    await mustRun(t, 'qemu-io', ['-f', 'raw', '-c', 'write -P 1 4M 2M', uri])
    const mapped = await mustRun(t, 'qemu-img', ['map', '-f', 'raw', '--output=json', uri])
    const MIB = 1024 * 1024
    t.match(JSON.parse(mapped), [
      { start: 0, length: 4 * MIB, zero: true, data: false },
      { start: 4 * MIB, length: 2 * MIB, zero: false, data: true },
      { start: 6 * MIB, length: SIZE - 6 * MIB, zero: true, data: false },
    ])
    t.same(await server.stop(), CLEAN_EXIT)
  })

  void t.test(`qemu-img compare notices one changed byte on ${backend}`, async (t) => {
    const { server, uri, directory } = await serveDisk(t, backend, SIZE)
    const source = path.join(directory, 'source.raw')
    await createSparseImage(source, SIZE)
    await mustRun(t, 'qemu-img', ['convert', '-n', '-f', 'raw', '-O', 'raw', source, uri])
    await mustRun(t, 'qemu-io', ['-f', 'raw', '-c', 'write -P 1 1048576 1', uri])
    const compared = await runTool(t, 'qemu-img', [
      ...['compare', '-f', 'raw', '-F', 'raw'],
      ...[source, uri],
    ])
    t.match(compared, { code: 1, stdout: /mismatch at offset 1048576/ })
    t.same(await server.stop(), CLEAN_EXIT)
  })

  void t.test(`a qcow2 image inside an export on ${backend} passes qemu-img check`, async (t) => {
    const { server, uri, directory } = await serveDisk(t, backend, 2 * SIZE)
    const source = path.join(directory, 'source.raw')
    const content = await createSparseImage(source, SIZE)
    await mustRun(t, 'qemu-img', ['create', '-q', '-f', 'qcow2', uri, String(SIZE)])
    await mustRun(t, 'qemu-img', ['convert', '-n', '-f', 'raw', '-O', 'qcow2', source, uri])
    await mustRun(t, 'qemu-img', ['check', '-q', '-f', 'qcow2', uri])
    const back = path.join(directory, 'back.raw')
    await mustRun(t, 'qemu-img', ['convert', '-f', 'qcow2', '-O', 'raw', uri, back])
    t.equal(difference(await readFile(back), content), undefined)
    t.same(await server.stop(), CLEAN_EXIT)
  })
}

void t.test('holes copied by qemu-img stay holes in the image file', async (t) => {
  const { server, uri, directory, image } = await serveDisk(t, 'aio', SIZE)
  const source = path.join(directory, 'source.raw')
  await createSparseImage(source, SIZE)
  await mustRun(t, 'qemu-img', ['convert', '-n', '-f', 'raw', '-O', 'raw', source, uri])
  t.same(await server.stop(), CLEAN_EXIT)
  const { stdout } = await runTool(t, 'stat', ['--format=%b', image ?? ''])
  t.ok(Number(stdout) * 512 <= 17 * 1024 * 1024, 'only the data takes space')
})
