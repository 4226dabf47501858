import t from 'tap'

import { bar, progressLine, progressOn } from '../../cli/progress.ts'

const QUIET = { print: () => undefined, env: {}, uid: 0, pid: 1 }

void t.test('a bar is as long as what is done', (t) => {
  t.match(bar(0, 100), /^\[> {39}\] {3}0 %$/)
  t.match(bar(50, 100), /^\[={20}> {19}\] {2}50 %$/)
  t.match(bar(100, 100), /^\[={40}\] 100 %$/)
  t.match(bar(0, 0), /100 %$/)
  t.end()
})

void t.test('a line replaces the one before it', (t) => {
  t.equal(progressLine('x'), '\r\u001b[Kx')
  t.end()
})

void t.test('progress is drawn now and then, and at the end, where somebody watches', (t) => {
  const lines: string[] = []
  const progress = progressOn({ ...QUIET, progress: (line) => lines.push(line) }, 'copying')
  for (let done = 0; done <= 1000; done += 1) progress(done, 1000)
  t.match(lines[0], /^copying \[>/)
  t.match(lines.at(-1), /100 %$/)
  t.ok(lines.length < 500)
  progressOn(QUIET, 'copying')(1, 2)
  t.end()
})
