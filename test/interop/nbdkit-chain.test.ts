/** nbdkit's nbd plugin in front of colotap: another implementation's client in every request. */

import path from 'node:path'

import t from 'tap'

import { mustRun, runTool, startChild } from '../support/child.ts'
import { nbdUri } from '../support/colotap.ts'
import { createSparseImage, imageDifference } from '../support/images.ts'
import { BACKENDS, CLEAN_EXIT, serveDisk } from '../support/served-disk.ts'

const SIZE = 16 * 1024 * 1024 + 512

for (const backend of BACKENDS) {
  void t.test(`what nbdkit passes on arrives on ${backend}, and comes back`, async (t) => {
    const { server, uri, directory, image } = await serveDisk(t, backend, SIZE)
    const socket = path.join(directory, 'nbdkit.sock')
    const nbdkit = startChild(t, 'nbdkit', [
      ...['--foreground', '--verbose', '--unix', socket],
      ...['nbd', `uri=${uri}`, 'shared=true'],
    ])
    await nbdkit.complained('bound to unix socket')
    const front = nbdUri(socket, '')
    const seen = JSON.parse(await mustRun(t, 'nbdinfo', ['--json', front])) as unknown
    t.match(seen, {
      exports: [{ 'export-size': SIZE, can_fast_zero: true, contexts: ['base:allocation'] }],
    })

    const source = path.join(directory, 'source.raw')
    const back = path.join(directory, 'back.raw')
    const content = await createSparseImage(source, SIZE)
    await mustRun(t, 'nbdcopy', ['--connections=4', source, front])
    await mustRun(t, 'nbdcopy', ['--connections=4', front, back])
    t.equal(await imageDifference(back, content), undefined)
    const compared = await runTool(t, 'qemu-img', ['compare', '-f', 'raw', '-F', 'raw', uri, front])
    t.match(compared, { code: 0, stdout: /identical/ })
    const maps = await Promise.all(
      [uri, front].map((each) => mustRun(t, 'nbdinfo', ['--map', '--json', each])),
    )
    t.equal(maps[1], maps[0], 'the same holes, through nbdkit')

    nbdkit.signal('SIGTERM')
    await nbdkit.end()
    t.same(await server.stop(), CLEAN_EXIT)
    if (image !== undefined) t.equal(await imageDifference(image, content), undefined)
  })
}
