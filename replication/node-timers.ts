/** Node's timers behind the interface that pure code is given. */

import type { Timers } from '../core/clock.ts'

export const NODE_TIMERS: Timers = {
  after(ms, run) {
    if (ms === 0) {
      const immediate = setImmediate(run)
      return () => clearImmediate(immediate)
    }
    const timer = setTimeout(run, ms)
    return () => clearTimeout(timer)
  },
}
