/** Where the control socket is when nobody says: the same answer for the server and for the commands that ask it. */

import { join } from 'node:path'

import type { OptionSpec, Terminal } from './command-line.ts'

export const CONTROL_OPTION: OptionSpec = {
  value: 'PATH',
  meaning: 'the control socket (default: see "colotap serve --help")',
}

/**
 * A system's server is root's and lives under /run; a user's lives in the user's own runtime folder. For root that
 * folder does not count: a login shell has it and a system service has not, and the two must agree.
 */
export function defaultControlPath({ env, uid }: Pick<Terminal, 'env' | 'uid'>): string {
  const own = env['XDG_RUNTIME_DIR']
  const folder = uid === 0 || own === undefined || own === '' ? '/run' : own
  return join(folder, 'colotap', 'control.sock')
}
