import t from 'tap'
import { formatSize, GiB, KiB, MiB, parseSize, TiB } from '../../core/units.ts'

const SIZES: readonly (readonly [string, number])[] = [
  ['0', 0],
  ['512', 512],
  ['64K', 64 * KiB],
  ['64k', 64 * KiB],
  ['64KiB', 64 * KiB],
  ['64KB', 64 * KiB],
  ['512B', 512],
  ['1.5M', 1.5 * MiB],
  ['10G', 10 * GiB],
  [' 2 TiB ', 2 * TiB],
]

for (const [text, bytes] of SIZES)
  void t.test(`"${text}" is ${bytes} bytes`, (t) => {
    t.equal(parseSize(text), bytes)
    t.end()
  })

for (const text of ['', 'G', '-1', '1.5', '0x10', '1e3', '10P', '1 0', '9007199254740992', '9000T'])
  void t.test(`"${text}" is no size`, (t) => {
    t.throws(() => parseSize(text), { name: 'Fault', code: 'INVALID' })
    t.end()
  })

const FORMATTED: readonly (readonly [number, string])[] = [
  [0, '0 B'],
  [1023, '1023 B'],
  [1024, '1 KiB'],
  [1536, '1.5 KiB'],
  [150.5 * MiB, '151 MiB'],
  [3 * TiB, '3 TiB'],
  [5000 * 1024 * TiB, '5000 PiB'],
]

for (const [bytes, text] of FORMATTED)
  void t.test(`${bytes} bytes are written as ${text}`, (t) => {
    t.equal(formatSize(bytes), text)
    t.end()
  })
