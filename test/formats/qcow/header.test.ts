import fc from 'fast-check'
import t from 'tap'

import { Fault } from '../../../core/fault.ts'
import { GiB, KiB, MiB } from '../../../core/units.ts'
import { clusterSizeOf, HEADER_3, parseHeader } from '../../../formats/qcow/header.ts'
import { EXTENSION, extensionBytes } from '../../../formats/qcow/header-extensions.ts'
import { newImageBytes, newImageObjection, type NewQcow2 } from '../../../formats/qcow/new-image.ts'
import { newQcow1Bytes, parseQcow1Header } from '../../../formats/qcow/qcow1-header.ts'
import { parseBitmapDirectory, parseBitmapsExtension } from '../../../formats/qcow/bitmaps.ts'
import { parseSnapshots } from '../../../formats/qcow/snapshots.ts'

const NEW: NewQcow2 = {
  version: 3,
  size: 1 * GiB,
  clusterSize: 64 * KiB,
  refcountBits: 16,
  extended: false,
  lazyRefcounts: false,
  compression: 'zlib',
  backing: undefined,
  dataFile: undefined,
}

void t.test('a new image is read as what it was made as', (t) => {
  const variants: readonly Partial<NewQcow2>[] = [
    {},
    { version: 2 },
    { clusterSize: 512, refcountBits: 1, size: 2 * MiB },
    { clusterSize: 512, refcountBits: 64, size: 8 * GiB },
    { clusterSize: 2 * MiB, refcountBits: 32 },
    { extended: true, lazyRefcounts: true, compression: 'zstd' },
    { backing: { named: 'base image.qcow2', format: 'qcow2' } },
    { version: 2, backing: { named: '/srv/ü.raw', format: 'raw' } },
    { backing: { named: 'base', format: undefined } },
    { dataFile: { named: 'data.raw', raw: true } },
    { size: 0 },
  ]
  for (const variant of variants) {
    const image = { ...NEW, ...variant }
    const bytes = newImageBytes(image)
    const cluster = bytes.subarray(0, clusterSizeOf(bytes))
    const header = parseHeader(cluster, bytes.length)
    t.match(header, {
      version: image.version,
      size: image.size,
      compression: image.compression,
      backingFile: image.backing?.named,
      backingFormat: image.backing?.format,
      dataFile: image.dataFile?.named,
      layout: {
        clusterSize: image.clusterSize,
        refcountBits: image.refcountBits,
        extended: image.extended,
      },
    })
  }
  t.end()
})

void t.test('images that cannot be are not made', (t) => {
  const cases: readonly [Partial<NewQcow2>, RegExp][] = [
    [{ clusterSize: 1000 }, /power of two/],
    [{ clusterSize: 4 * MiB }, /2\^22/],
    [{ refcountBits: 3 }, /3 bits/],
    [{ extended: true, clusterSize: 8 * KiB }, /at least 16 KiB/],
    [{ version: 2, refcountBits: 8 }, /16 bits only/],
    [{ version: 2, extended: true }, /need version 3/],
    [{ clusterSize: 512, size: 256 * GiB }, /too large/],
    [{ backing: { named: 'x'.repeat(1024), format: 'raw' } }, /longer than 1023/],
    [
      { backing: { named: 'x', format: 'raw' }, dataFile: { named: 'd', raw: true } },
      /excludes a backing/,
    ],
  ]
  for (const [variant, says] of cases) t.match(newImageObjection({ ...NEW, ...variant }), says)
  t.throws(
    () =>
      newImageBytes({
        ...NEW,
        clusterSize: 512,
        size: 1 * MiB,
        backing: { named: 'x'.repeat(600), format: 'raw' },
      }),
    { message: /do not fit/ },
  )
  t.end()
})

type Change = (
  fields: ReturnType<typeof HEADER_3.read>,
) => Partial<ReturnType<typeof HEADER_3.read>>

void t.test('every header that cannot be is refused with its reason', (t) => {
  const cases: readonly [Change, RegExp][] = [
    [() => ({ magic: 1 }), /no QCOW image/],
    [() => ({ version: 4 }), /version 4/],
    [() => ({ clusterBits: 8 }), /2\^8/],
    [() => ({ clusterBits: 22 }), /2\^22/],
    [() => ({ cryptMethod: 1 }), /AES/],
    [() => ({ cryptMethod: 2 }), /LUKS/],
    [() => ({ cryptMethod: 9 }), /method 9/],
    [() => ({ incompatibleFeatures: 1n << 40n }), /unknown features: bit 40/],
    [() => ({ incompatibleFeatures: 1n << 3n }), /compression type/],
    [() => ({ refcountOrder: 7 }), /128 bits/],
    [() => ({ headerLength: 96 }), /96 bytes is too little/],
    [() => ({ headerLength: 108 }), /multiple of 8/],
    [() => ({ headerLength: 2 ** 31 }), /longer than the first cluster/],
    [() => ({ size: 2 ** 52 }), /too large/],
    [() => ({ l1Size: 2 ** 30 }), /too large/],
    [() => ({ l1Size: 1 }), /too small/],
    [({ l1TableOffset }) => ({ l1TableOffset: l1TableOffset + 512 }), /boundary/],
    [() => ({ l1TableOffset: 2 ** 40 }), /beyond the end/],
    [() => ({ l1TableOffset: 0 }), /overlaps the header/],
    [({ l1TableOffset }) => ({ refcountTableOffset: l1TableOffset }), /overlaps the L1 table/],
    [() => ({ refcountTableOffset: 2 ** 40 }), /beyond the end/],
    [() => ({ refcountTableClusters: 0 }), /no refcount table/],
    [() => ({ refcountTableClusters: 2 ** 20 }), /too large/],
    [() => ({ nbSnapshots: 70_000 }), /too many/],
    [() => ({ nbSnapshots: 1, snapshotsOffset: 2 ** 40 }), /beyond the end/],
    [() => ({ nbSnapshots: 1, snapshotsOffset: 65_536 }), /overlaps the refcount table/],
    [() => ({ backingFileOffset: 65_530, backingFileSize: 100 }), /not in the first cluster/],
    [() => ({ backingFileOffset: 200, backingFileSize: 2000 }), /2000 bytes/],
    [() => ({ backingFileOffset: 50, backingFileSize: 10 }), /overlaps the header/],
    [() => ({ backingFileOffset: 300, backingFileSize: 10 }), /no text/],
    [() => ({ autoclearFeatures: 1n }), /bitmaps are announced/],
    [() => ({ autoclearFeatures: 2n }), /no data file/],
  ]
  for (const [change, says] of cases) {
    const bytes = newImageBytes(NEW)
    const fields = HEADER_3.read(bytes)
    HEADER_3.write(bytes, 0, { ...fields, ...change(fields) })
    t.throws(() => parseHeader(bytes.subarray(0, 65_536), bytes.length), {
      name: 'Fault',
      message: says,
    })
  }
  t.end()
})

void t.test('a disk of 2^63 bytes is refused', (t) => {
  const bytes = newImageBytes(NEW)
  bytes.writeBigUInt64BE(1n << 63n, 24)
  t.throws(() => parseHeader(bytes.subarray(0, 65_536), bytes.length), { code: 'INVALID' })
  t.end()
})

void t.test('an unknown feature is called what the image calls it', (t) => {
  const bytes = newImageBytes(NEW)
  const fields = HEADER_3.read(bytes)
  HEADER_3.write(bytes, 0, { ...fields, incompatibleFeatures: 1n << 9n })
  const names = Buffer.alloc(48)
  names.writeUInt8(9, 1)
  names.write('time travel', 2)
  extensionBytes(EXTENSION.featureNames, names).copy(bytes, fields.headerLength)
  t.throws(() => parseHeader(bytes.subarray(0, 65_536), bytes.length), {
    code: 'NOT_SUPPORTED',
    message: /time travel \(bit 9\)/,
  })
  t.end()
})

/** Runs a parser; only faults may come out of it. */
function faultsOnly(parse: () => unknown): boolean {
  try {
    parse()
    return true
  } catch (error) {
    return error instanceof Fault
  }
}

const noise = fc.array(fc.tuple(fc.nat(400), fc.nat(255)), { maxLength: 12 })

void t.test('whatever is in a header, parsing it gives a header or a fault', (t) => {
  const images = [
    newImageBytes({
      ...NEW,
      clusterSize: 512,
      size: 1 * MiB,
      backing: { named: 'b', format: 'raw' },
    }),
    newImageBytes({ ...NEW, clusterSize: 512, size: 1 * MiB, version: 2 }),
  ]
  fc.assert(
    fc.property(fc.constantFrom(...images), noise, fc.nat(600), (image, changes, length) => {
      const bytes = Buffer.from(image)
      for (const [at, value] of changes) bytes[at] = value
      return (
        faultsOnly(() => parseHeader(bytes.subarray(0, 512), bytes.length)) &&
        faultsOnly(() => parseHeader(bytes.subarray(0, Math.min(length, 512)), length)) &&
        faultsOnly(() => clusterSizeOf(bytes.subarray(0, length)))
      )
    }),
    { numRuns: 3000 },
  )
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 300 }), (bytes) =>
      faultsOnly(() => parseHeader(Buffer.from(bytes), bytes.length)),
    ),
  )
  t.end()
})

void t.test('and so with version 1, snapshots and bitmaps', (t) => {
  const first = newQcow1Bytes({ size: 1 * MiB, backing: 'base.raw' })
  t.match(parseQcow1Header(first, first.length), { size: 1 * MiB, backingFile: 'base.raw' })
  const { layout } = parseHeader(newImageBytes(NEW).subarray(0, 65_536), 4 * 65_536)
  fc.assert(
    fc.property(noise, fc.uint8Array({ maxLength: 400 }), fc.nat(5), (changes, raw, count) => {
      const bytes = Buffer.from(first)
      for (const [at, value] of changes) if (at < bytes.length) bytes[at] = value
      const random = Buffer.from(raw)
      return (
        faultsOnly(() => parseQcow1Header(bytes, bytes.length)) &&
        faultsOnly(() => parseSnapshots(random, count, layout, 2 ** 40)) &&
        faultsOnly(() => parseBitmapDirectory(random, count, layout, 2 ** 40)) &&
        faultsOnly(() => parseBitmapsExtension(random.subarray(0, 24), layout, 2 ** 40))
      )
    }),
    { numRuns: 2000 },
  )
  t.end()
})
