/** Internal snapshots of QCOW2 images, made by colotap and by QEMU, each used by the other. */

import { readFile } from 'node:fs/promises'
import path from 'node:path'

import t, { type Test } from 'tap'

import { mustRun } from '../support/child.ts'
import { colotap } from '../support/colotap.ts'
import { tempDirectory } from '../support/scope.ts'
import { inspectQcow2 } from '../support/qcow-inspector.ts'

const VARIANTS: readonly (readonly string[])[] = [
  [],
  ['-o', 'compat=0.10'],
  ['-o', 'cluster_size=512'],
  ['-o', 'cluster_size=16k,extended_l2=on'],
  ['-o', 'refcount_bits=64,cluster_size=2M'],
  ['-o', 'lazy_refcounts=on,compression_type=zstd'],
]

async function must(t: Test, args: readonly string[]): Promise<string> {
  const { code, stdout, stderr } = await colotap(t, args)
  if (code !== 0) throw new Error(`colotap ${args.join(' ')}: ${stderr}`)
  return stdout
}

for (const options of VARIANTS) {
  void t.test(`QEMU and colotap use each other's snapshots: ${options.join(' ')}`, async (t) => {
    const image = path.join(await tempDirectory(t), 'disk.qcow2')
    const target = `qcow:${image}`
    const io = async (...commands: string[]): Promise<unknown> =>
      mustRun(t, 'qemu-io', ['-f', 'qcow2', ...commands.flatMap((each) => ['-c', each]), image])
    const sound = async (when: string): Promise<void> => {
      await mustRun(t, 'qemu-img', ['check', '-q', '-f', 'qcow2', image])
      t.same(inspectQcow2(await readFile(image)), { errors: [], leaks: 0 }, when)
    }
    const snapshot = (...args: string[]): Promise<string> =>
      must(t, ['image', 'internal-snapshot', target, ...args])
    await mustRun(t, 'qemu-img', ['create', '-q', '-f', 'qcow2', ...options, image, '16M'])
    await io('write -P 1 0 3M', 'write -P 2 5M 70k')
    await snapshot('--create', 'ours')
    await sound('ours is made')
    t.match(await mustRun(t, 'qemu-img', ['snapshot', '-l', image]), /1 +ours /)
    await io('write -P 3 1M 1M', 'write -z 5M 64k')
    await mustRun(t, 'qemu-img', ['snapshot', '-c', 'theirs', image])
    t.match(await snapshot(), /^ +1 +ours \(20.*16 MiB\)\n +2 +theirs /)
    t.match(JSON.parse(await snapshot('--json')), [{ id: '1', name: 'ours' }, { name: 'theirs' }])
    await io('write -P 4 0 6M')
    await mustRun(t, 'qemu-img', ['snapshot', '-a', 'ours', image])
    await io('read -P 1 0 3M', 'read -P 2 5M 70k', 'read -P 0 6M 1M')
    await sound('QEMU went back to ours')
    await io('write -P 5 0 6M')
    await snapshot('--apply', 'theirs')
    await sound('colotap went back to theirs')
    await io('read -P 1 0 1M', 'read -P 3 1M 1M', 'read -P 0 5M 64k', 'read -P 2 5184k 6k')
    await io('write -P 6 0 2M')
    await snapshot('--delete', 'theirs')
    await sound('theirs is deleted')
    await mustRun(t, 'qemu-img', ['snapshot', '-d', 'ours', image])
    await sound('ours is deleted')
    await io('read -P 6 0 2M', 'read -P 1 2M 1M')
    t.equal(await snapshot(), 'no snapshots\n')
  })
}

void t.test('what cannot be done is said in one line', async (t) => {
  const directory = await tempDirectory(t)
  const vhd = `vhd:${path.join(directory, 'a.vhd')}`
  const qcow = `qcow:${path.join(directory, 'a.qcow2')}`
  for (const image of [vhd, qcow]) await must(t, ['image', 'create', image, '--size', '1M'])
  const cases: readonly (readonly [args: readonly string[], code: number, stderr: RegExp])[] = [
    [[vhd], 1, /vhd images have no internal snapshots/],
    [[qcow, '--apply', 'a'], 1, /no snapshot "a"/],
    [[qcow, '--create', 'a', '--delete', 'b'], 2, /exclude each other/],
    [[qcow, '--create', 'x'.repeat(256)], 1, /cannot have the name/],
  ]
  for (const [args, code, stderr] of cases) {
    const result = await colotap(t, ['image', 'internal-snapshot', ...args])
    t.match(result, { code, stderr }, args.join(' '))
    t.equal(result.stderr.trim().split('\n').length, 1)
  }
})
