/**
 * How the two sides of a replication link know each other: the `tls-` settings of a `colo` or `remus` stage.
 *
 * Invariant: whatever leaves this machine is encrypted and authenticated, or the operator has said `--insecure`. That
 * holds for both sides: a primary gives every write away, and acts on what it is told.
 */

import { resolve } from 'node:path'

import { formatHostPort, isLoopback, type HostPort } from '../core/address.ts'
import { Fault } from '../core/fault.ts'
import { Credentials, type CredentialSource } from '../net/credentials.ts'
import type { LinkSecurity } from '../replication/dial.ts'
import type { Stage } from './driver.ts'

export interface SecuritySettings {
  readonly source: CredentialSource | undefined
  readonly peerName: string | undefined
}

/** @throws Fault INVALID when the settings contradict each other */
export function securityOf(stage: Stage): SecuritySettings {
  const [directory, file, user, peerName] = ['tls-creds', 'tls-psk', 'tls-user', 'tls-name'].map(
    (key) => textSetting(stage, key),
  )
  const wrong = objection({ directory, file, user, peerName })
  if (wrong !== undefined)
    throw new Fault('INVALID', wrong, {
      where: `${stage.driver}:${stage.target}`,
      remedy: 'give tls-creds=DIR (and tls-name=), or tls-psk=FILE (and tls-user=)',
    })
  if (directory !== undefined)
    return { source: { kind: 'x509', directory: resolve(directory) }, peerName }
  if (file !== undefined)
    return { source: { kind: 'psk', file: resolve(file), user }, peerName: undefined }
  return { source: undefined, peerName: undefined }
}

interface Given {
  readonly directory: string | undefined
  readonly file: string | undefined
  readonly user: string | undefined
  readonly peerName: string | undefined
}

function objection({ directory, file, user, peerName }: Given): string | undefined {
  if (directory !== undefined && file !== undefined)
    return 'tls-creds and tls-psk exclude each other'
  if (user !== undefined && file === undefined) return 'tls-user names a user of a tls-psk file'
  if (peerName !== undefined && directory === undefined)
    return 'tls-name is the name in a certificate, which needs tls-creds'
  return undefined
}

function textSetting(stage: Stage, key: string): string | undefined {
  const text = stage.settings.get(key)
  if (text === undefined || text !== '') return text
  throw new Fault('INVALID', `${stage.driver}: ${key} has no value`, {
    where: `${stage.driver}:${stage.target}`,
    remedy: `give ${key}=VALUE, or leave it out`,
  })
}

/**
 * `securable`: whether the link could be made secure.
 * @throws Fault NOT_PERMITTED where what leaves this machine would be open to others
 */
export function refuseExposure(
  { source }: SecuritySettings,
  address: HostPort,
  side: 'server' | 'client',
  securable = true,
): void {
  if (source !== undefined || isLoopback(address.host)) return
  const doing = side === 'server' ? 'listen' : 'connect'
  const give = securable ? 'give both sides tls-creds=DIR or tls-psk=FILE, ' : ''
  throw new Fault(
    'NOT_PERMITTED',
    'a replication link beyond this machine would be neither authenticated nor encrypted',
    {
      where: formatHostPort(address),
      remedy: `${give}${doing} on a loopback address behind a tunnel, or accept the risk with --insecure`,
    },
  )
}

/** @throws Fault when the credentials cannot be used */
export async function loadSecurity(
  { source, peerName }: SecuritySettings,
  side: 'server' | 'client',
): Promise<LinkSecurity | undefined> {
  if (source === undefined) return undefined
  // Both sides are colotap: nothing older than the newest version is needed.
  return { credentials: await Credentials.load({ source, side, minVersion: 'TLSv1.3' }), peerName }
}
