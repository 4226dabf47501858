/** Tells systemd the state of the service (sd_notify(3)), where systemd started it and asked to be told. */

import { execFile } from 'node:child_process'

import type { Logger } from '../core/logger.ts'

/**
 * Node cannot send datagrams to a unix socket; systemd's own tool can. The unit needs NotifyAccess=all for it.
 * A failure is logged and changes nothing else: systemd then does what its unit says about a silent service.
 */
export function notifySystemd(
  state: 'READY=1' | 'STOPPING=1',
  env: Readonly<Record<string, string | undefined>>,
  logger: Logger,
): Promise<void> {
  if (env['NOTIFY_SOCKET'] === undefined) return Promise.resolve()
  return new Promise((done) => {
    execFile('systemd-notify', [state], (error) => {
      if (error !== null) logger.error({ error, state }, 'systemd could not be notified')
      done()
    })
  })
}
