/** Where a server keeps what has to survive it, when nobody says where. */

import { join } from 'node:path'

import type { Terminal } from './command-line.ts'

/**
 * $STATE_DIRECTORY is what systemd gives a service (systemd.exec(5)); for a user, the XDG Base Directory
 * Specification has the place.
 */
export function defaultStateDir({ env, uid }: Pick<Terminal, 'env' | 'uid'>): string {
  const given = env['STATE_DIRECTORY']?.split(':')[0]
  if (given !== undefined && given !== '') return given
  if (uid === 0) return '/var/lib/colotap'
  const xdg = env['XDG_STATE_HOME']
  if (xdg?.startsWith('/') === true) return join(xdg, 'colotap')
  return join(env['HOME'] ?? '/', '.local', 'state', 'colotap')
}
