/** docs/testing.md lists every defect that is planted, with its owner and the test that notices, and no others. */

import { readFile } from 'node:fs/promises'

import t from 'tap'

import { PLANTED } from '../mutation/planted.ts'

const text = await readFile(new URL('../../docs/testing.md', import.meta.url), 'utf8')

void t.test('the table of planted defects is that of the gate', (t) => {
  const section = text.split('\n## Planted defects\n')[1]?.split('\n## ')[0] ?? ''
  const described = section.split('\n').filter((line) => line.endsWith('.test.ts` |'))
  const planted = PLANTED.map(
    ({ of, defect, test }) => `| ${of} | ${defect} | \`${test.replace('test/', '')}\` |`,
  )
  t.same(described.sort(), planted.sort())
  t.end()
})
