/**
 * What the other side of a blktap2 connection would say in a hello if its wire had one. All that is said here is an
 * assumption, and docs/blktap2.md tells users so:
 *  - its disk has our size and, when the connection is made, our content;
 *  - each connection is with a peer of its own, so no second one is ever taken for the first one come back;
 *  - what it commits is in memory, whatever it really is.
 */

import type { GroupStatus } from '../group.ts'
import { decodeHello, encodeHello, PROTOCOL, verdictOn, type Hello } from '../machine/handshake.ts'

/**
 * The answer to our primary's `hello`: that of a secondary that knows nothing. With the images equal, as our primary has
 * to say, what it lacks is what was written since.
 * @returns why there can be none instead
 */
export function secondaryHello(hello: Buffer, replica: string): { hello: Buffer } | string {
  const source = decodeHello(hello)
  const target: Hello = {
    ...source,
    ...{ role: 'secondary', replica, generation: null, history: [] },
    ...{ checkpoint: 0, announced: 0, consistent: true, wrote: false, discard: null },
    ...{ capacity: Number.MAX_SAFE_INTEGER, durable: false, identical: false, features: [] },
  }
  const verdict = verdictOn(source, target)
  if (verdict.kind === 'follow' && verdict.resync === 'everything')
    return 'the secondary would need a copy of everything, which the blktap2 wire cannot carry: make the images equal, and start both sides anew'
  return { hello: encodeHello(target) }
}

/**
 * What a primary that connects to our secondary, whose status is given, would say: it is at the beginning of a line that
 * nobody else has. A secondary that holds something already is not to give that up, whatever an operator has chosen: it
 * would get no copy.
 */
export function primaryHello({ group, mode, term, disks }: GroupStatus, replica: string): Hello {
  return {
    protocol: PROTOCOL,
    ...{ group, mode, role: 'primary', replica, term },
    ...{ generation: replica, history: [], checkpoint: 0, announced: 0 },
    ...{ consistent: true, wrote: true, identical: true, discard: 'local' },
    disks: disks.map(({ name, size }) => ({ name, size })),
    ...{ capacity: 0, durable: false, features: [], ack: 'sent' },
  }
}

/** The last checkpoint that our secondary's answer counts as announced: the primary's next one is the one after it. */
export function announcedIn(hello: Buffer): number {
  return decodeHello(hello).announced ?? 0
}
