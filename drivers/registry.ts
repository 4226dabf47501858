/** Every driver that a pipeline can name. */

import { aio } from './aio/aio.ts'
import { cache } from './cache/cache.ts'
import type { Driver } from './driver.ts'
import { fault } from './fault.ts'
import { log } from './log/log.ts'
import { nbd } from './nbd/nbd.ts'
import { qcow } from './qcow/qcow.ts'
import { ram } from './ram.ts'
import { colo, remus } from './replica.ts'
import { valve } from './valve/valve.ts'
import { vhd } from './vhd/vhd.ts'

export const DRIVERS: readonly Driver[] = [
  ...[aio, ram, vhd, qcow, nbd],
  ...[colo, remus, log, valve, cache, fault],
]
