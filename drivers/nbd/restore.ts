/**
 * Sends what a server may have lost once more, after a connection was lost.
 *
 * Invariant: a server that answers nothing of it for too long loses the session.
 */

import type { Timers } from '../../core/clock.ts'
import { lastContents, type Change } from './replay-log.ts'
import type { Session } from './session.ts'

/** Changes under way at a time. */
const AT_A_TIME = 16

/** @throws Fault LINK_LOST when the session is lost, or the server's error when it refuses one of them */
export async function restore(
  changes: readonly Change[],
  session: Session,
  { timers, deadlineMs }: { readonly timers: Timers; readonly deadlineMs: number },
): Promise<void> {
  // They do not overlap: their order has no meaning.
  const left = lastContents(changes)
  let cancel = (): void => undefined
  const watch = (): void => {
    cancel()
    cancel = timers.after(deadlineMs, () => session.abandon())
  }
  const lane = async (): Promise<void> => {
    for (let change = left.pop(); change !== undefined; change = left.pop()) {
      watch()
      await send(change, session)
    }
  }
  try {
    await Promise.all(Array.from({ length: AT_A_TIME }, lane))
  } finally {
    cancel()
  }
}

function send(change: Change, { client }: Session): Promise<void> {
  switch (change.kind) {
    case 'write':
      return client.write(change.bytes, change.at)
    case 'zero':
      return client.zero(change.at, change.length, change.flags)
    case 'trim':
      return client.trim(change.at, change.length)
  }
}
