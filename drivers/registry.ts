/** Every driver that a pipeline can name. */

import { aio } from './aio/aio.ts'
import type { Driver } from './driver.ts'
import { qcow } from './qcow/qcow.ts'
import { ram } from './ram.ts'
import { colo, remus } from './replica.ts'
import { vhd } from './vhd/vhd.ts'

export const DRIVERS: readonly Driver[] = [aio, ram, vhd, qcow, colo, remus]
