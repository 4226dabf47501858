/** Everything that `colotap image` can do. */

import type { Subcommand } from '../command-line.ts'
import { commit } from './commit.ts'
import { create, snapshot } from './create.ts'
import { internalSnapshot } from './internal-snapshot.ts'
import { check, info, map } from './look.ts'

export const IMAGE_SUBCOMMANDS: readonly Subcommand[] = [
  create,
  snapshot,
  internalSnapshot,
  info,
  check,
  map,
  commit,
]
