/** Every driver that a pipeline can name. */

import { aio } from './aio/aio.ts'
import type { Driver } from './driver.ts'
import { ram } from './ram.ts'
import { colo, remus } from './replica.ts'

export const DRIVERS: readonly Driver[] = [aio, ram, colo, remus]
