import fc from 'fast-check'
import t from 'tap'

import { newHeader, NO_LOCATOR } from '../../../formats/vhd/dynamic-header.ts'
import {
  decodeLocator,
  decodeParentName,
  encodeLocators,
  encodeParentName,
  fillLocators,
  isReadable,
} from '../../../formats/vhd/parent-names.ts'

const locator = (code: string, data: Buffer) => ({
  ...{ code, dataLength: data.length, dataSpace: 512, reserved: 0, dataOffset: 4096 },
})

/** What others write, and the paths that it stands for. */
const FOREIGN: readonly (readonly [code: string, data: Buffer, paths: readonly string[]])[] = [
  ['MacX', Buffer.from('file://./a.vhd'), ['./a.vhd']],
  ['MacX', Buffer.from('file:///srv/a%20b.vhd'), ['/srv/a%20b.vhd', '/srv/a b.vhd']],
  ['MacX', Buffer.from('file://localhost/srv/a.vhd'), ['/srv/a.vhd']],
  ['MacX', Buffer.from('file:///srv/100%.vhd'), ['/srv/100%.vhd']],
  ['MacX', Buffer.from('file:///srv/a%00b'), ['/srv/a%00b']],
  ['MacX', Buffer.from('http://x/a.vhd'), []],
  ['W2ru', Buffer.from('.\\vm\\a.vhd', 'utf16le'), ['./vm/a.vhd']],
  ['W2ku', Buffer.from('C:\\vm\\ä.vhd', 'utf16le'), ['/vm/ä.vhd']],
  ['W2ku', Buffer.from('a.vhd\0junk', 'utf16le'), ['a.vhd']],
  ['Wi2r', Buffer.from('a.vhd'), []],
]

for (const [code, data, paths] of FOREIGN) {
  void t.test(`${code} ${JSON.stringify(data.toString('latin1'))}`, (t) => {
    t.same(decodeLocator(locator(code, data), data), paths)
    t.end()
  })
}

void t.test('what is written for a path reads as that path', (t) => {
  const names = fc
    .string({ minLength: 1, maxLength: 40 })
    .filter((name) => !/[\\/%\0.:]/.test(name))
  fc.assert(
    fc.property(names, (name) => {
      for (const path of [`./${name}`, `../${name}`, `/srv/${name}`]) {
        for (const { code, data } of encodeLocators(path)) {
          t.ok(isReadable(locator(code, data)))
          t.same(decodeLocator(locator(code, data), data), [path])
        }
      }
    }),
  )
  t.same(
    encodeLocators('a.vhd').map(({ code, data }) => decodeLocator(locator(code, data), data)),
    [['./a.vhd'], ['./a.vhd'], ['./a.vhd']],
  )
  t.end()
})

void t.test('the name in the header is the last part of the path', (t) => {
  const header = newHeader({
    ...{ tableOffset: 512, tableEntries: 1, blockSize: 512, parentTimestamp: 0 },
    parentUuid: Buffer.alloc(16),
    parentName: encodeParentName('/srv/vm/größe.vhd'),
    locators: fillLocators([], NO_LOCATOR),
  })
  t.equal(decodeParentName(header), 'größe.vhd')
  t.equal(header.parentName.toString('hex', 0, 4), '00670072')
  t.end()
})

void t.test('a locator without length, or of an absurd one, is not read', (t) => {
  t.notOk(isReadable({ ...locator('MacX', Buffer.alloc(1)), dataLength: 0 }))
  t.notOk(isReadable({ ...locator('MacX', Buffer.alloc(1)), dataLength: 0xffff_ffff }))
  t.end()
})
