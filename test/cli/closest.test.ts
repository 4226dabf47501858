import t from 'tap'

import { closest } from '../../cli/closest.ts'

const WORDS = ['export', 'listen', 'control', 'read-only', 'log-level', 'insecure', 'help']

void t.test('a slip of the pen is recognised, another word is not', (t) => {
  const cases: [string, string | undefined][] = [
    ['exports', 'export'],
    ['exprot', 'export'],
    ['lsiten', 'listen'],
    ['readonly', 'read-only'],
    ['loglevel', 'log-level'],
    ['hlep', 'help'],
    ['log', 'log-level'],
    ['colour', undefined],
    ['x', undefined],
    ['', undefined],
  ]
  for (const [given, meant] of cases) t.equal(closest(given, WORDS), meant, given)
  t.equal(closest('anything', []), undefined)
  t.end()
})
