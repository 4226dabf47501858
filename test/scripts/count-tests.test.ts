import t from 'tap'
import path from 'node:path'
import { runTool } from '../support/child.ts'
import { PROJECT } from '../support/colotap.ts'

/** What tap prints, what is made of it, and the exit status: plain, and where a skip is a failure. */
const CASES = [
  {
    of: 'two passing tests',
    tap: ['    ok 1 - one # time=3ms', '    ', '    ok 2 - two', 'ok 1 - a.test.ts'],
    counts: '2 passed, 0 failed',
    status: { plain: 0, strict: 0 },
  },
  {
    of: 'a failed test, which is not counted again as a failed file',
    tap: ['        not ok 1 - should be equal', '    not ok 1 - one', 'not ok 1 - a.test.ts'],
    counts: '0 passed, 1 failed',
    status: { plain: 1, strict: 1 },
  },
  {
    of: 'a file that failed outside its tests',
    tap: ['    ok 1 - one', 'not ok 1 - a.test.ts', '    ok 1 - two', 'not ok 2 - timeout!'],
    counts: '2 passed, 2 failed',
    status: { plain: 1, strict: 1 },
  },
  {
    of: 'a file that ran out of time, which tap names twice',
    tap: [
      ...['    not ok 1 - slow', 'not ok 1 - test/slow.test.ts # time=9ms', '    ok 1 - two'],
      ...['ok 2 - b', 'not ok 3 - timeout!', '  ---', '  expired: test/slow.test.ts', '  ...'],
    ],
    counts: '1 passed, 1 failed',
    status: { plain: 1, strict: 1 },
  },
  {
    of: 'skipped and unfinished tests',
    tap: ['    ok 1 - one', '    ok 2 - two # SKIP no disk', '    ok 3 - x # TODO', 'ok 1 - a'],
    counts: '1 passed, 0 failed, 2 skipped',
    status: { plain: 0, strict: 1 },
  },
  {
    of: 'results quoted in a diagnostic',
    tap: ['    not ok 1 - one', '      ---', '    ok 1 - quoted', '      ...', 'not ok 1 - a'],
    counts: '0 passed, 1 failed',
    status: { plain: 1, strict: 1 },
  },
  { of: 'no test at all', tap: [], counts: '0 passed, 0 failed', status: { plain: 1, strict: 1 } },
]

for (const { of, tap, counts, status } of CASES) {
  void t.test(`the count of ${of}`, async (t) => {
    for (const [mode, strict] of [['plain', 0] as const, ['strict', 1] as const]) {
      const counted = await runTool(
        t,
        'awk',
        ['-v', `strict=${strict}`, '-f', path.join(PROJECT, 'scripts', 'count-tests.awk')],
        { input: ['TAP version 14', ...tap].map((line) => `${line}\n`).join('') },
      )
      t.equal(counted.stdout, `${counts}\n`)
      t.equal(counted.code, status[mode], mode)
    }
  })
}
