import t from 'tap'
import { mustRun, runTool } from '../support/child.ts'
import { imageDifference } from '../support/images.ts'
import { BACKENDS, CLEAN_EXIT, serveDisk } from '../support/served-disk.ts'

const SIZE = 8 * 1024 * 1024

/** Each case writes through qemu-io and applies the same change to the content that is expected at the end. */
const CASES: readonly { does: string; commands: string[]; change: (disk: Buffer) => void }[] = [
  {
    does: 'writes that start and end inside sectors',
    commands: ['write -P 0xa1 1 510', 'write -P 0xa2 777 4096', 'write -P 0xa3 1048575 2'],
    change(disk) {
      disk.fill(0xa1, 1, 511)
      disk.fill(0xa2, 777, 777 + 4096)
      disk.fill(0xa3, 1_048_575, 1_048_577)
    },
  },
  {
    does: 'the first and the last byte',
    commands: ['write -P 0xb1 0 1', `write -P 0xb2 ${SIZE - 1} 1`],
    change(disk) {
      disk[0] = 0xb1
      disk[SIZE - 1] = 0xb2
    },
  },
  {
    does: 'zeroes over part of what was written',
    commands: [
      'write -P 0xc1 65536 262144',
      'write -z 100000 50000',
      'write -zu 200000 65536',
      'write -z 300000 1',
    ],
    change(disk) {
      disk.fill(0xc1, 65_536, 65_536 + 262_144)
      disk.fill(0, 100_000, 150_000)
      disk.fill(0, 200_000, 265_536)
      disk.fill(0, 300_000, 300_001)
    },
  },
  {
    does: 'a write with forced unit access and a flush',
    commands: ['write -f -P 0xd1 4096 8192', 'flush', 'write -P 0xd2 8192 512'],
    change(disk) {
      disk.fill(0xd1, 4096, 12_288)
      disk.fill(0xd2, 8192, 8704)
    },
  },
  {
    does: 'writes in flight together',
    commands: [
      ...Array.from({ length: 32 }, (_, i) => `aio_write -q -P ${i + 1} ${i * 70_000} 65537`),
      'aio_flush',
    ],
    change(disk) {
      for (let i = 0; i < 32; i++) disk.fill(i + 1, i * 70_000, i * 70_000 + 65_537)
    },
  },
  {
    does: 'a write of several buffers and one larger than a mebibyte',
    commands: ['writev -P 0xe1 512 1000 24 3000', 'write -P 0xe2 2097153 5000000'],
    change(disk) {
      disk.fill(0xe1, 512, 512 + 4024)
      disk.fill(0xe2, 2_097_153, 7_097_153)
    },
  },
]

for (const backend of BACKENDS) {
  for (const { does, commands, change } of CASES) {
    void t.test(`qemu-io on ${backend}: ${does}`, async (t) => {
      const { server, uri, image, directory } = await serveDisk(t, backend, SIZE)
      const expected = Buffer.alloc(SIZE)
      change(expected)
      const written = await runTool(t, 'qemu-io', ['-f', 'raw', ...asOptions(commands), uri])
      t.match(written, { code: 0, stderr: '' })

      const copy = `${directory}/copy.raw`
      await mustRun(t, 'qemu-img', ['convert', '-f', 'raw', '-O', 'raw', uri, copy])
      t.equal(await imageDifference(copy, expected), undefined, 'it reads back')
      t.same(await server.stop(), CLEAN_EXIT)
      if (image !== undefined)
        t.equal(await imageDifference(image, expected), undefined, 'it is in the image')
    })
  }

  void t.test(
    `qemu-io on ${backend}: what a discard covers reads the same ever after`,
    async (t) => {
      const { server, uri } = await serveDisk(t, backend, SIZE)
      const discarded = await runTool(t, 'qemu-io', [
        ...['-f', 'raw', '-d', 'unmap'],
        ...asOptions(['write -P 0x5a 0 1048576', 'discard 65536 131072', 'discard 300001 999']),
        ...asOptions(['read -P 0x5a 0 65536', 'read -P 0x5a 196608 103393']),
        ...asOptions(['read -P 0x5a 301000 747576']),
        uri,
      ])
      t.match(discarded, { code: 0, stderr: '' })
      t.notMatch(discarded.stdout, /verification failed/, 'the neighbours are untouched')
      const reads = ['read -v 65536 131072', 'read -v 300001 999']
      const first = await mustRun(t, 'qemu-io', ['-r', '-f', 'raw', ...asOptions(reads), uri])
      const second = await mustRun(t, 'qemu-io', ['-r', '-f', 'raw', ...asOptions(reads), uri])
      t.equal(hexLines(first), hexLines(second))
      t.same(await server.stop(), CLEAN_EXIT)
    },
  )
}

function asOptions(commands: readonly string[]): string[] {
  return commands.flatMap((command) => ['-c', command])
}

/** The dumped bytes of `read -v`, without its timings. */
function hexLines(output: string): string {
  return output
    .split('\n')
    .filter((line) => /^[0-9a-f]{8}:/.test(line))
    .join('\n')
}
