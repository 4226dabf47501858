import t from 'tap'

import { Congestion } from '../../../replication/machine/congestion.ts'

/** Time, whether data waits, progress; and whether it is stuck then. */
type Look = readonly [nowMs: number, held: boolean, progress: number, stuck: boolean]

const CASES: Readonly<Record<string, readonly Look[]>> = {
  'data that waits without progress for the limit is stuck': [
    [0, true, 5, false],
    [99, true, 5, false],
    [100, true, 5, true],
    [200, true, 5, true],
  ],
  'the least progress begins the time anew': [
    [0, true, 5, false],
    [90, true, 6, false],
    [180, true, 6, false],
    [190, true, 6, true],
  ],
  'where nothing waits, nothing is stuck': [
    [0, false, 5, false],
    [500, false, 5, false],
    [510, true, 5, false],
    [609, true, 5, false],
    [610, true, 5, true],
  ],
  'what is stuck stays so without data that waits, until there is progress': [
    [0, true, 5, false],
    [100, true, 5, true],
    [110, false, 5, true],
    [300, false, 6, false],
    [400, true, 6, false],
  ],
}

for (const [claim, looks] of Object.entries(CASES))
  void t.test(claim, (t) => {
    const congestion = new Congestion(100)
    for (const [nowMs, held, progress, stuck] of looks) {
      const was = congestion.stuck
      t.equal(congestion.look({ nowMs, held, progress }), stuck && !was, `news at ${nowMs}`)
      t.equal(congestion.stuck, stuck, `at ${nowMs}`)
    }
    t.end()
  })
