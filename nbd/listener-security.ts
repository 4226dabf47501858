/** What one listener demands of its clients: TLS or not, and whom they prove to be. */

import { Credentials, type CredentialSource } from '../net/credentials.ts'
import type { TlsState } from './options.ts'

/** As users say it. */
export interface TlsSettings {
  readonly source: CredentialSource
  /** Nothing is served without TLS; otherwise it is the client's choice. */
  readonly required: boolean
  /** Clients need no certificate: the connection is encrypted, and who they are stays unknown. */
  readonly anybody: boolean
}

/** With the files read. */
export interface ListenerSecurity {
  readonly credentials: Credentials
  readonly required: boolean
  readonly anybody: boolean
}

/** @throws Fault that names the file when the credentials cannot be used */
export async function loadSecurity(
  settings: TlsSettings | undefined,
): Promise<ListenerSecurity | undefined> {
  if (settings === undefined) return undefined
  const { source, required, anybody } = settings
  // Clients of other makers may know nothing newer than 1.2, which the protocol demands (section "TLS versions").
  const options = { source, side: 'server', minVersion: 'TLSv1.2' } as const
  return { credentials: await Credentials.load(options), required, anybody }
}

/** What a new connection is told about TLS. */
export function tlsStateOf(security: ListenerSecurity | undefined): Exclude<TlsState, 'secured'> {
  if (security === undefined) return 'none'
  return security.required ? 'required' : 'offered'
}
