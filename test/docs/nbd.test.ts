/** docs/nbd.md speaks of every number of the protocol that the code has, and names only tests that exist. */

import { existsSync } from 'node:fs'
import { readFile } from 'node:fs/promises'

import t from 'tap'

const text = await readFile(new URL('../../docs/nbd.md', import.meta.url), 'utf8')
const protocol = await readFile(new URL('../../nbd/protocol.ts', import.meta.url), 'utf8')

void t.test('every option, flag, command, reply and error has its line', (t) => {
  const named = [...protocol.matchAll(/^export const (NBD_[A-Z_]+) =/gm)].map(
    ([, name = '']) => name,
  )
  const numbers = named.filter((name) => !/MAGIC|^NBD_OK$|_REPLY_FLAG_DONE$/.test(name))
  t.ok(numbers.length > 50)
  for (const name of numbers) t.ok(text.includes(`\`${name}\``), name)
  t.end()
})

void t.test('every test that it names is there', (t) => {
  const files = new Set(
    [...text.matchAll(/`([a-z-]+\/[\w-]+\.test\.ts)`/g)].map(([, file = '']) => file),
  )
  t.ok(files.size > 15)
  for (const file of files) t.ok(existsSync(new URL(`../${file}`, import.meta.url)), file)
  t.end()
})

void t.test('what is claimed names a test', (t) => {
  const rows = text.split('\n').filter((line) => line.startsWith('| ') && line.includes('| yes'))
  t.ok(rows.length > 20)
  for (const row of rows) t.match(row, /\.test\.ts` \|$/, row.slice(0, 60))
  t.end()
})
