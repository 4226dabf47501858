/** What two sides say that have replicated up to checkpoint 5; the primary has announced 7. */

import type { Hello } from '../../../replication/machine/handshake.ts'

export const PRIMARY: Hello = {
  protocol: { min: 1, max: 1 },
  group: 'vm',
  mode: 'colo',
  role: 'primary',
  replica: 'p',
  generation: 'g1',
  history: [],
  checkpoint: 5,
  announced: 7,
  consistent: true,
  wrote: true,
  term: 1,
  disks: [
    { name: 'a', size: 4096 },
    { name: 'b', size: 8192 },
  ],
  capacity: 0,
  durable: false,
  discard: null,
  identical: false,
  features: [],
  ack: 'sent',
}

export const SECONDARY: Hello = {
  ...PRIMARY,
  ...{ role: 'secondary', replica: 's', announced: 6, wrote: false, capacity: 65536 },
}
