/** Every defect of the gate. */

import { DISK_CHANGES } from './disk-changes.ts'
import { INVARIANTS } from './invariants.ts'
import type { Mutant } from './mutant.ts'
import { PREDECESSORS } from './predecessors.ts'

export const PLANTED: readonly Mutant[] = [...PREDECESSORS, ...INVARIANTS, ...DISK_CHANGES]
