/**
 * Which clients may use an export: rules, and what of a table of exports a client is shown by them.
 *
 * Invariants:
 *  - Everything that a client learns of exports it learns through its view: what it may not use is not in there, and a
 *    name of such an export means no more to it than one that does not exist.
 *  - An export with rules is for nobody who has proved nothing.
 */

import { Fault } from '../core/fault.ts'
import {
  parseDistinguishedName,
  type DistinguishedName,
  type PeerIdentity,
} from '../net/peer-identity.ts'
import type { Export, ExportTable } from './export.ts'

/** One client, or all that share a name. */
export type ClientRule =
  | { readonly kind: 'cn'; readonly name: string }
  | { readonly kind: 'dn'; readonly subject: DistinguishedName }
  | { readonly kind: 'psk'; readonly user: string }

const NOBODY: PeerIdentity = { kind: 'nobody' }

/**
 * Reads `cn:NAME`, `dn:CN=NAME,O=…` and `psk:USER`.
 * @throws Fault INVALID when it is none of them
 */
export function parseClientRule(text: string): ClientRule {
  const colon = text.indexOf(':')
  const value = text.slice(colon + 1)
  const kind = value === '' ? '' : text.slice(0, Math.max(0, colon))
  if (kind === 'cn') return { kind, name: value }
  if (kind === 'psk') return { kind, user: value }
  const subject = kind === 'dn' ? parseDistinguishedName(value) : undefined
  if (subject !== undefined) return { kind: 'dn', subject }
  throw new Fault('INVALID', `not a client: "${text}"`, {
    remedy:
      'write cn:NAME for the common name of a certificate, dn:CN=NAME,O=… for its whole subject, or psk:USER',
  })
}

/** What a client may use; `identity` is undefined while it has not proved who it is. */
export function visibleTo(exports: ExportTable, identity: PeerIdentity | undefined): ExportTable {
  const who = identity ?? NOBODY
  return {
    find: (name) => {
      const found = exports.find(name)
      return found !== undefined && admits(found, who) ? found : undefined
    },
    list: () => exports.list().filter((each) => admits(each, who)),
  }
}

/** Whether some exports are for some clients only. */
export function isRestricted(exports: ExportTable): boolean {
  return exports.list().some(({ clients }) => clients !== undefined)
}

function admits({ clients }: Export, who: PeerIdentity): boolean {
  return clients === undefined || clients.some((rule) => fits(rule, who))
}

function fits(rule: ClientRule, who: PeerIdentity): boolean {
  switch (rule.kind) {
    case 'cn':
      return who.kind === 'certificate' && who.commonName === rule.name
    case 'dn':
      return who.kind === 'certificate' && who.subject === rule.subject
    case 'psk':
      return who.kind === 'key' && who.user === rule.user
  }
}
