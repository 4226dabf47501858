import { readFile } from 'node:fs/promises'
import t from 'tap'
import { DRIVERS } from '../../drivers/registry.ts'

const text = await readFile(new URL('../../docs/drivers.md', import.meta.url), 'utf8')

for (const { name, keys } of DRIVERS) {
  void t.test(`docs/drivers.md describes ${name} with all its keys and no others`, (t) => {
    const heading = new RegExp(`^## .*\`${name}\`.*$`, 'm').exec(text)
    t.ok(heading, 'it has a section')
    const section = text.slice(heading?.index).split(/^## /m)[1] ?? ''
    const described = [...section.matchAll(/^\| `([\w-]+)` \|/gm)].map(([, key]) => key)
    t.same(described.sort(), Object.keys(keys).sort())
    t.end()
  })
}
