import t from 'tap'
import { mustRun } from '../support/child.ts'
import type { Scope } from '../support/scope.ts'
import { BACKENDS, CLEAN_EXIT, serveDisk } from '../support/served-disk.ts'

const SIZE = 64 * 1024 * 1024
/** Without a state file, which fio would leave in the current directory. */
const VERIFY = ['--verify=crc32c', '--verify_fatal=1', '--verify_state_save=0']

interface FioJob {
  readonly error: number
  readonly read: { readonly total_ios: number }
  readonly write: { readonly total_ios: number }
  readonly trim: { readonly total_ios: number }
}

for (const backend of BACKENDS) {
  const cases = [
    { does: 'random writes of mixed sizes verify', args: ['--rw=randwrite', '--bsrange=512-128k'] },
    { does: 'random 4 KiB writes verify', args: ['--rw=randwrite', '--bs=4k'] },
    { does: 'large sequential writes verify', args: ['--rw=write', '--bs=1m'] },
  ]
  for (const { does, args } of cases) {
    void t.test(`fio on ${backend}, 32 requests in flight: ${does}`, async (t) => {
      const { server, uri } = await serveDisk(t, backend, SIZE)
      const [job] = await fio(t, uri, [
        ...['--iodepth=32', `--size=${SIZE}`, '--name=verify'],
        ...[...args, ...VERIFY],
      ])
      t.equal(job!.error, 0)
      t.ok(job!.write.total_ios > 0 && job!.read.total_ios > 0, 'it wrote and read back')
      t.same(await server.stop(), CLEAN_EXIT)
    })
  }

  void t.test(`fio on ${backend}: trims beside verified writes corrupt nothing`, async (t) => {
    const { server, uri } = await serveDisk(t, backend, SIZE)
    // fio verifies only what it knows to be in order, so the trims go to the other half of the disk.
    const [verify, trim] = await fio(t, uri, [
      ...['--iodepth=32', '--bs=4k', `--size=${SIZE / 2}`],
      ...['--name=verify', '--rw=randwrite', ...VERIFY],
      ...['--name=trim', '--rw=randtrim', `--offset=${SIZE / 2}`],
    ])
    t.match([verify, trim], [{ error: 0 }, { error: 0 }])
    t.ok(verify!.write.total_ios > 0 && trim!.trim.total_ios > 0, 'it wrote and trimmed')
    t.same(await server.stop(), CLEAN_EXIT)
  })

  void t.test(`fio on ${backend}: a write over a trimmed block is read back`, async (t) => {
    const { server, uri } = await serveDisk(t, backend, SIZE)
    const [job] = await fio(t, uri, [
      ...['--iodepth=1', '--bs=4k', `--size=${SIZE / 4}`],
      ...['--name=verify', '--rw=randtrimwrite', ...VERIFY],
    ])
    t.equal(job!.error, 0)
    t.ok(job!.write.total_ios > 0 && job!.trim.total_ios > 0, 'it wrote and trimmed')
    t.same(await server.stop(), CLEAN_EXIT)
  })
}

/** Runs fio's nbd engine and gives its report for each job. */
async function fio(scope: Scope, uri: string, args: readonly string[]): Promise<FioJob[]> {
  const output = await mustRun(scope, 'fio', [
    ...['--ioengine=nbd', `--uri=${uri}`, '--output-format=json', '--randseed=20250101'],
    ...args,
  ])
  return (JSON.parse(output.slice(output.indexOf('{'))) as { jobs: FioJob[] }).jobs
}
