/** What systemd and a service say to each other: sockets that it opened, and the state of the service. */

import { execFile } from 'node:child_process'

import { Fault } from '../core/fault.ts'
import type { Logger } from '../core/logger.ts'
import type { InheritedSocket } from '../nbd/listen-place.ts'

type Environment = Readonly<Record<string, string | undefined>>

/** The first descriptor that is passed, and the name of one that has none (sd_listen_fds(3)). */
const FIRST_DESCRIPTOR = 3
const NAMELESS = 'unknown'

/**
 * The sockets that systemd passed to this process; none where it passed them to another, such as its parent.
 * @throws Fault INVALID when what it says of them makes no sense
 */
export function inheritedSockets(env: Environment, pid: number): InheritedSocket[] {
  const { LISTEN_PID: receiver, LISTEN_FDS: count, LISTEN_FDNAMES: names } = env
  if (receiver !== String(pid)) return []
  if (count === undefined || !/^\d{1,4}$/.test(count)) {
    throw new Fault('INVALID', `LISTEN_FDS is "${count ?? ''}", which is no number of sockets`, {
      remedy: 'start the service through its socket unit',
    })
  }
  const given = names?.split(':') ?? []
  return Array.from({ length: Number(count) }, (_, index) => ({
    kind: 'inherited',
    fd: FIRST_DESCRIPTOR + index,
    name: given[index] ?? NAMELESS,
  }))
}

/**
 * Tells systemd the state of the service (sd_notify(3)), where systemd started it and asked to be told. Node cannot send datagrams to a unix socket; systemd's own tool can. The unit needs NotifyAccess=all for it.
 * A failure is logged and changes nothing else: systemd then does what its unit says about a silent service.
 */
export function notifySystemd(
  state: 'READY=1' | 'STOPPING=1',
  env: Environment,
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
