/**
 * How an `nbd` stage and its server know each other: its `tls-` settings.
 *
 * Invariant: what leaves this machine is encrypted and both sides are authenticated, or the operator has said `--insecure`.
 */

import { isLoopback } from '../../core/address.ts'
import { Fault } from '../../core/fault.ts'
import type { Logger } from '../../core/logger.ts'
import { Credentials } from '../../net/credentials.ts'
import { formatListenAddress } from '../../nbd/address.ts'
import type { ClientSecurity } from '../../nbd/client-link.ts'
import type { Stage } from '../driver.ts'
import { securityOf } from '../link-credentials.ts'
import type { NbdTarget } from './target.ts'

/** @returns what gives the next session its credentials @throws Fault when they cannot be used, or are missing */
export async function serverSecurity(
  stage: Stage,
  { address }: NbdTarget,
  { insecure, logger }: { readonly insecure: boolean; readonly logger: Logger },
): Promise<() => Promise<ClientSecurity | undefined>> {
  const { source, peerName } = securityOf(stage)
  const where = formatListenAddress(address)
  if (source === undefined) {
    if (insecure || address.kind === 'unix' || isLoopback(address.host))
      return () => Promise.resolve(undefined)
    throw new Fault(
      'NOT_PERMITTED',
      'a disk beyond this machine would be used without encryption',
      {
        where,
        remedy:
          'give tls-creds=DIR or tls-psk=FILE, connect to a loopback address behind a tunnel, or accept the risk with --insecure',
      },
    )
  }
  const name = peerName ?? (address.kind === 'tcp' ? address.host : undefined)
  if (source.kind === 'x509' && name === undefined) {
    throw new Fault(
      'INVALID',
      'a server on a unix socket has no name to look for in its certificate',
      {
        where,
        remedy: 'give tls-name=NAME',
      },
    )
  }
  // Other servers may know nothing newer than 1.2.
  const credentials = await Credentials.load({ source, side: 'client', minVersion: 'TLSv1.2' })
  return async () => ({ material: await credentials.current(logger), peerName: name ?? '' })
}
