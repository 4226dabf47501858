import t from 'tap'

import { capabilitiesOf, exportObjection, geometryOf } from '../../../drivers/nbd/export-facts.ts'
import type { ExportInfo } from '../../../nbd/client-handshake.ts'

const MiB = 1024 * 1024
const [HAS, READ_ONLY, FLUSH, FUA, ROTATIONAL, TRIM, ZEROES, FAST] = [
  1,
  1 << 1,
  1 << 2,
  1 << 3,
  1 << 4,
  1 << 5,
  1 << 6,
  1 << 11,
] as const
const EVERYTHING = HAS | FLUSH | FUA | TRIM | ZEROES | FAST

function offered(flags: number, rest: Partial<ExportInfo> = {}): ExportInfo {
  return {
    size: 10 * MiB,
    flags,
    block: { min: 1, preferred: 4096, max: 32 * MiB },
    description: '',
    structured: true,
    allocationId: 1,
    ...rest,
  }
}

void t.test('what the server offers is what the disk can', (t) => {
  const all = { flush: true, fua: true, trim: true, zero: true, fastZero: true, status: true }
  t.match(capabilitiesOf(offered(EVERYTHING), false), all)
  const none = {
    flush: false,
    fua: false,
    trim: false,
    zero: false,
    fastZero: false,
    status: false,
  }
  t.match(capabilitiesOf(offered(HAS, { allocationId: undefined }), false), none)
  t.match(capabilitiesOf(offered(HAS | FAST), false), { fastZero: false }, 'fast needs zeroes')
  const fixed = { flush: true, trim: false, zero: false, fastZero: false, status: true }
  t.match(capabilitiesOf(offered(EVERYTHING | READ_ONLY), false), fixed)
  t.match(capabilitiesOf(offered(EVERYTHING), true), fixed)
  t.end()
})

void t.test('its sizes are those of the disk, within what the protocol promises', (t) => {
  const block = { min: 512, preferred: 4096, max: 2 ** 32 - 1 }
  t.match(geometryOf(offered(HAS | ROTATIONAL, { block }), false), {
    size: 10 * MiB,
    block: { min: 512, preferred: 4096, max: 32 * MiB },
    readOnly: false,
    rotational: true,
  })
  t.match(geometryOf(offered(HAS | READ_ONLY), false), { readOnly: true, rotational: false })
  t.match(geometryOf(offered(HAS), true), { readOnly: true })
  const odd = { min: 512, preferred: 512, max: 1000 }
  t.equal(geometryOf(offered(HAS, { block: odd }), false).block.max, 512, 'whole blocks')
  t.end()
})

const GOOD = { min: 512, preferred: 4096, max: MiB }
for (const [what, rest] of [
  ['a smallest block of no bytes', { block: { ...GOOD, min: 0 } }],
  ['a smallest block that is no power of two', { block: { ...GOOD, min: 1000 } }],
  ['a smallest block that is too large', { block: { min: 131_072, preferred: 131_072, max: MiB } }],
  ['a preferred block below the smallest', { block: { ...GOOD, preferred: 256 } }],
  ['a largest request below a block', { block: { ...GOOD, max: 100 } }],
  ['no bytes', { size: 0 }],
] as const) {
  void t.test(`an export is refused with ${what}`, (t) => {
    t.type(exportObjection(offered(EVERYTHING, rest)), 'string')
    t.end()
  })
}

void t.test('the same export, and one that offers more, is the one that was lost', (t) => {
  const before = offered(HAS | FLUSH, { block: GOOD, allocationId: undefined })
  t.equal(exportObjection(before, before), undefined)
  const more = offered(EVERYTHING, { block: { min: 1, preferred: 512, max: 2 * MiB } })
  t.equal(exportObjection(more, before), undefined)
  t.end()
})

for (const [what, now] of [
  ['another size', offered(EVERYTHING, { size: 11 * MiB })],
  ['larger blocks', offered(EVERYTHING, { block: { min: 512, preferred: 4096, max: 32 * MiB } })],
  ['smaller requests', offered(EVERYTHING, { block: { min: 1, preferred: 4096, max: MiB } })],
  ['no more writes', offered(EVERYTHING | READ_ONLY)],
  ['no flush', offered(EVERYTHING & ~FLUSH)],
  ['no FUA', offered(EVERYTHING & ~FUA)],
  ['no trim', offered(EVERYTHING & ~TRIM)],
  ['no zeroes', offered(EVERYTHING & ~ZEROES)],
  ['no fast zeroes', offered(EVERYTHING & ~FAST)],
  ['no status', offered(EVERYTHING, { allocationId: undefined })],
] as const) {
  void t.test(`an export with ${what} is not the one that was lost`, (t) => {
    t.type(exportObjection(now, offered(EVERYTHING)), 'string')
    t.end()
  })
}
