/** `colotap version`. */

import { VERSION } from '../control/version.ts'
import type { Subcommand } from './command-line.ts'

export const version: Subcommand = {
  name: 'version',
  summary: 'print the version',
  options: {},
  run: (_given, terminal) => {
    terminal.print(`colotap ${VERSION}`)
    return Promise.resolve()
  },
}
