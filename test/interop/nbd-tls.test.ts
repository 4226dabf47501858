/** The clients that others use, with GnuTLS, through TLS: each does what it does without. */

import path from 'node:path'

import t, { type Test } from 'tap'

import { Authority } from '../support/certificates.ts'
import { mustRun, runTool, startChild } from '../support/child.ts'
import { colotap, nbdUri, serveColotap } from '../support/colotap.ts'
import { createSparseImage, imageDifference } from '../support/images.ts'
import { CLIENT, PROOFS, serveSecureDisk, type SecureDisk } from '../support/secure-disk.ts'
import { CLEAN_EXIT } from '../support/served-disk.ts'

const MIB = 1024 * 1024
/** Odd on purpose, where the client has no sectors. */
const ODD = 24 * MIB + 777
const SIZE = 24 * MIB

/** Debian's libnbd belongs to Debian's python3, whatever other python3 the user has. */
function nbdsh(t: Test, uri: string, script: string): Promise<string> {
  const connected = `h.set_uri_allow_local_file(True)\nh.connect_uri(${JSON.stringify(uri)})\n${script}`
  const env = { PATH: '/usr/sbin:/usr/bin:/sbin:/bin' }
  return mustRun(t, 'nbdsh', ['-c', connected], { env })
}

/** nbdkit's nbd plugin, which demands TLS of the disk; ended by `end`. */
async function nbdkitBefore(
  t: Test,
  disk: SecureDisk,
): Promise<{ uri: string; end: () => Promise<unknown> }> {
  const socket = path.join(disk.directory, 'nbdkit.sock')
  const nbdkit = startChild(t, 'nbdkit', [
    ...['--foreground', '--verbose', '--unix', socket, 'nbd', 'hostname=127.0.0.1'],
    ...[`port=${disk.port}`, 'export=disk', 'shared=true', 'tls=require', ...disk.plugin],
  ])
  await nbdkit.complained('bound to unix socket')
  const end = (): Promise<unknown> => {
    nbdkit.signal('SIGTERM')
    return nbdkit.end()
  }
  return { uri: nbdUri(socket, ''), end }
}

for (const proof of PROOFS) {
  void t.test(`nbdinfo, with ${proof}`, async (t) => {
    const { server, uri, unixUri } = await serveSecureDisk(t, proof, { size: ODD })
    for (const each of [uri, unixUri]) {
      const info = JSON.parse(await mustRun(t, 'nbdinfo', ['--json', each])) as unknown
      t.match(info, {
        TLS: true,
        structured: true,
        exports: [{ 'export-name': 'disk', 'export-size': ODD, contexts: ['base:allocation'] }],
      })
    }
    // Data and holes as they are, which nobody else wrote.
    await nbdsh(t, uri, `h.pwrite(b"x" * ${MIB}, ${MIB})`)
    t.match(JSON.parse(await mustRun(t, 'nbdinfo', ['--map', '--json', uri])), [
      { offset: 0, length: MIB, type: 3 },
      { offset: MIB, length: MIB, type: 0 },
      { offset: 2 * MIB, length: ODD - 2 * MIB, type: 3 },
    ])
    t.same(await server.stop(), CLEAN_EXIT)
  })

  void t.test(`nbdcopy both ways over several connections, with ${proof}`, async (t) => {
    const { server, uri, image, directory } = await serveSecureDisk(t, proof, { size: ODD })
    const source = path.join(directory, 'source.raw')
    const back = path.join(directory, 'back.raw')
    const content = await createSparseImage(source, ODD)
    const args = ['--connections=4', '--requests=32', '--flush']
    await mustRun(t, 'nbdcopy', [...args, source, uri])
    await mustRun(t, 'nbdcopy', [...args, uri, back])
    t.equal(await imageDifference(back, content), undefined)
    t.same(await server.stop(), CLEAN_EXIT)
    t.equal(await imageDifference(image, content), undefined)
  })

  void t.test(`qemu-img convert, compare and map, with ${proof}`, async (t) => {
    const disk = await serveSecureDisk(t, proof, { size: SIZE })
    const { server, object, imageOptions, image, directory } = disk
    const source = path.join(directory, 'source.raw')
    const back = path.join(directory, 'back.raw')
    const content = await createSparseImage(source, SIZE)
    const served = `driver=raw,file.${imageOptions.replaceAll(',', ',file.')}`
    const file = (at: string): string => `driver=raw,file.filename=${at}`
    await mustRun(t, 'qemu-img', [
      ...['convert', ...object, '-n', '--image-opts', '--target-image-opts'],
      ...[file(source), served],
    ])
    await mustRun(t, 'qemu-img', [
      ...['convert', ...object, '--image-opts', served, '-O', 'raw', back],
    ])
    t.equal(await imageDifference(back, content), undefined)
    const compare = ['compare', ...object, '--image-opts', file(source), served]
    t.match(await runTool(t, 'qemu-img', compare), { code: 0, stdout: /identical/ })
    await mustRun(t, 'qemu-io', [...object, '--image-opts', '-c', 'write -P 1 1048576 1', served])
    t.match(await runTool(t, 'qemu-img', compare), { code: 1, stdout: /offset 1048576/ })
    const map = ['map', ...object, '--output=json', '--image-opts']
    const mapped = JSON.parse(await mustRun(t, 'qemu-img', [...map, served])) as object[]
    t.ok(mapped.length > 1, 'it knows data from holes')
    const plain = JSON.parse(await mustRun(t, 'qemu-img', [...map, file(image)])) as object[]
    t.same(
      mapped.map((each) => ({ ...each, offset: 0 })),
      plain.map((each) => ({ ...each, offset: 0 })),
    )
    t.same(await server.stop(), CLEAN_EXIT)
  })

  void t.test(`qemu-io, with ${proof}`, async (t) => {
    const disk = await serveSecureDisk(t, proof, { size: SIZE })
    const { server, object, imageOptions, image } = disk
    const commands = [
      'write -P 0xa1 1 510',
      ...Array.from(
        { length: 32 },
        (_, i) => `aio_write -q -P ${i + 1} ${i * 70_000 + 1000} 65537`,
      ),
      'aio_flush',
      'write -P 0xe2 4194305 9000000',
      'write -zu 5000000 65536',
      'discard 6000000 4096',
      'write -f -P 0xd1 20000000 8192',
      'read -P 0xd1 20000000 8192',
      'flush',
    ]
    const written = await runTool(t, 'qemu-io', [
      ...[...object, '--image-opts', imageOptions, '-d', 'unmap'],
      ...commands.flatMap((command) => ['-c', command]),
    ])
    t.match(written, { code: 0, stderr: '' })
    t.notMatch(written.stdout, /verification failed|error/i)
    const expected = Buffer.alloc(SIZE)
    expected.fill(0xa1, 1, 511)
    for (let i = 0; i < 32; i += 1) expected.fill(i + 1, i * 70_000 + 1000, i * 70_000 + 66_537)
    expected.fill(0xe2, 4_194_305, 13_194_305)
    expected.fill(0, 5_000_000, 5_065_536)
    expected.fill(0, 6_000_000, 6_004_096)
    expected.fill(0xd1, 20_000_000, 20_008_192)
    t.same(await server.stop(), CLEAN_EXIT)
    t.equal(await imageDifference(image, expected), undefined)
  })

  // fio's own engine allows libnbd no files with credentials; nbdkit is what speaks TLS here.
  void t.test(`fio verifies what it wrote, with ${proof}`, async (t) => {
    const disk = await serveSecureDisk(t, proof, { size: SIZE })
    const { uri, end } = await nbdkitBefore(t, disk)
    for (const shape of [
      ['--rw=randwrite', '--bsrange=512-128k'],
      ['--rw=write', '--bs=1m'],
    ]) {
      const output = await mustRun(t, 'fio', [
        ...['--ioengine=nbd', `--uri=${uri}`, '--output-format=json', '--randseed=20250101'],
        ...['--iodepth=32', `--size=${SIZE}`, '--name=verify', ...shape],
        ...['--verify=crc32c', '--verify_fatal=1', '--verify_state_save=0'],
      ])
      const report = JSON.parse(output.slice(output.indexOf('{'))) as object
      t.match(report, { jobs: [{ error: 0 }] })
    }
    await end()
    t.same(await disk.server.stop(), CLEAN_EXIT)
  })

  void t.test(`nbdsh, with ${proof}`, async (t) => {
    const { server, uri, port } = await serveSecureDisk(t, proof, { size: SIZE })
    const script = `
assert h.get_tls_negotiated() and h.get_structured_replies_negotiated()
assert h.get_size() == ${SIZE} and h.can_multi_conn()
data = bytes(range(256)) * 131072
big = data[:20 * 1024 * 1024]
h.pwrite(big, 12345)
assert h.pread(len(big), 12345) == big
buffers = [nbd.Buffer(4096) for _ in range(64)]
left = [h.aio_pread(buffer, i * 4096) for i, buffer in enumerate(buffers)]
while left:
    left = [cookie for cookie in left if not h.aio_command_completed(cookie)]
    if left:
        h.poll(-1)
h.flush()
try:
    h.pread(4096, ${SIZE})
    raise AssertionError("beyond the end")
except nbd.Error as error:
    assert error.errnum == 22, error
h.shutdown()

clear = nbd.NBD()
try:
    clear.connect_uri("nbd://127.0.0.1:${port}/disk")
    raise AssertionError("it got an export in the clear")
except nbd.Error:
    pass
`
    await nbdsh(t, uri, script)
    t.same(await server.stop(), CLEAN_EXIT)
  })

  void t.test(`nbdkit’s nbd plugin in front, with ${proof}`, async (t) => {
    const disk = await serveSecureDisk(t, proof, { size: ODD })
    const { server, image, directory } = disk
    const { uri: front, end } = await nbdkitBefore(t, disk)
    const source = path.join(directory, 'source.raw')
    const back = path.join(directory, 'back.raw')
    const content = await createSparseImage(source, ODD)
    await mustRun(t, 'nbdcopy', ['--connections=4', source, front])
    await mustRun(t, 'nbdcopy', ['--connections=4', front, back])
    t.equal(await imageDifference(back, content), undefined)
    await end()
    t.same(await server.stop(), CLEAN_EXIT)
    t.equal(await imageDifference(image, content), undefined)
  })

  void t.test(`colotap on colotap, with ${proof}`, async (t) => {
    const { server, image, port, settings, directory } = await serveSecureDisk(t, proof, {
      size: ODD,
    })
    const front = await serveColotap(t, {
      exports: { front: `nbd:127.0.0.1:${port}?export=disk&${settings}` },
    })
    const source = path.join(directory, 'source.raw')
    const content = await createSparseImage(source, ODD)
    await mustRun(t, 'nbdcopy', ['--connections=4', source, front.uri('front')])
    t.same(await front.stop(), CLEAN_EXIT)
    t.same(await server.stop(), CLEAN_EXIT)
    t.equal(await imageDifference(image, content), undefined)
  })

  void t.test(`each client has its exports, with ${proof}`, async (t) => {
    const kind = proof === 'keys' ? 'psk' : 'cn'
    const { server, uri } = await serveSecureDisk(t, proof, {
      size: SIZE,
      exports: { mine: 'ram:1M', theirs: 'ram:2M' },
      args: ['--allow', `mine=${kind}:${CLIENT}`, '--allow', `theirs=${kind}:vm2`],
    })
    const listed = JSON.parse(await mustRun(t, 'nbdinfo', ['--json', '--list', uri])) as {
      exports: { 'export-name': string }[]
    }
    t.same(listed.exports.map((each) => each['export-name']).sort(), ['disk', 'mine'])
    await mustRun(t, 'nbdinfo', [uri.replace('/disk?', '/mine?')])
    // The same for what is added later.
    for (const [name, user] of [
      ['late', CLIENT],
      ['theirs2', 'vm2'],
    ] as const) {
      const args = [`${name}=ram:1M`, '--allow', `${kind}:${user}`, '--control', server.control]
      t.match(await colotap(t, ['add', ...args]), { code: 0 })
      const { code } = await runTool(t, 'nbdinfo', [uri.replace('/disk?', `/${name}?`)])
      t.equal(code === 0, user === CLIENT, name)
    }
    const answers = await Promise.all(
      ['theirs', 'nothing'].map((name) =>
        runTool(t, 'nbdinfo', [uri.replace('/disk?', `/${name}?`)]),
      ),
    )
    for (const { code, stderr } of answers)
      t.equal(stderr.replaceAll('theirs', 'nothing'), answers[1]?.stderr, `exit code ${code}`)
    t.not(answers[0]?.code, 0)
    // On the socket without TLS nobody has proved anything.
    const clear = JSON.parse(
      await mustRun(t, 'nbdinfo', ['--json', '--list', server.uri('')]),
    ) as typeof listed
    t.same(
      clear.exports.map((each) => each['export-name']),
      ['disk'],
    )
    t.same(await server.stop(), CLEAN_EXIT)
  })
}

void t.test('clients of others are refused what they must not have', async (t) => {
  const { server, uri, port, directory, object } = await serveSecureDisk(t, 'certificates', {
    size: SIZE,
  })
  const other = await Authority.make(t, path.join(directory, 'other-ca'))
  const foreign = await other.issue(path.join(directory, 'foreign'), 'client')
  const own = (folder: string): string =>
    uri.replace(/tls-certificates=.*/, `tls-certificates=${folder}`)
  const refused: [string, string[]][] = [
    ['nbdinfo', [`nbd://127.0.0.1:${port}/disk`]],
    ['nbdinfo', [own(foreign)]],
    ['nbdinfo', [own(path.join(directory, 'ca'))]],
    ['qemu-img', ['info', `nbd://127.0.0.1:${port}/disk`]],
    [
      'qemu-img',
      [
        'info',
        '--object',
        `tls-creds-anon,id=tls,endpoint=client`,
        '--image-opts',
        `driver=nbd,host=127.0.0.1,port=${port},export=disk,tls-creds=tls`,
      ],
    ],
  ]
  for (const [tool, args] of refused) {
    const { code, stdout } = await runTool(t, tool, args)
    t.not(code, 0, args.join(' '))
    t.notMatch(stdout, /24 MiB|25165824/, 'nothing of the disk is told')
  }
  const { code, stderr } = await runTool(t, 'qemu-img', ['info', `nbd://127.0.0.1:${port}/disk`])
  t.not(code, 0)
  t.match(stderr, /TLS/, 'QEMU knows what is asked of it')
  t.ok(object.length > 0)
  await mustRun(t, 'nbdinfo', [uri])
  t.same(await server.stop(), CLEAN_EXIT)
})

void t.test('certificates that are renewed count without a restart', async (t) => {
  const { server, uri, directory } = await serveSecureDisk(t, 'certificates', { size: SIZE })
  await mustRun(t, 'nbdinfo', [uri])
  const other = await Authority.make(t, path.join(directory, 'next-ca'))
  await other.issue(path.join(directory, 'server'), 'server')
  // Until the files are read again, a second later at most, the client still knows the authority of the certificate that it is shown.
  while ((await runTool(t, 'nbdinfo', [uri])).code === 0);
  const client = path.join(directory, 'client')
  await other.issue(client, 'client')
  await mustRun(t, 'nbdinfo', [uri])
  t.same(await server.stop(), CLEAN_EXIT)
})
