/**
 * The moment between a granted STARTTLS and TLS.
 *
 * Invariants:
 *  - From the moment that STARTTLS is granted nobody but TLS reads the socket, and everything that was not read before is
 *    TLS's: nothing that came in the clear can reach the negotiation as if it had come encrypted.
 *  - Nothing but the grant is sent in the clear.
 */

import type { Socket } from 'node:net'

import type { Logger } from '../core/logger.ts'
import { secureAccepted, type SecureOutcome } from '../net/secure-socket.ts'
import type { ListenerSecurity } from './listener-security.ts'

/** Ends in one call of `outcome`, or in the socket's close before TLS began. The caller keeps the time. */
export function startTls(
  raw: Socket,
  granted: Buffer,
  { credentials, anybody }: ListenerSecurity,
  logger: Logger,
  outcome: SecureOutcome,
): void {
  raw.pause()
  // Of a socket that is read by events. What it has read and not emitted, TLS takes out of it.
  raw.removeAllListeners('data')
  raw.write(granted, (error) => {
    if (error !== undefined && error !== null) return
    void credentials.current(logger).then((material) => {
      if (raw.destroyed) return
      // A client that leaves in the middle of the handshake has nothing to wait for. Later it has: its answers.
      raw.allowHalfOpen = false
      const secured: SecureOutcome['secured'] = (socket, identity, who) => {
        socket.allowHalfOpen = true
        outcome.secured(socket, identity, who)
      }
      secureAccepted(raw, material, { anybody }, { ...outcome, secured })
    })
  })
}
