/** Which export of which server an `nbd` stage means. */

import { parseHostPort } from '../../core/address.ts'
import { Fault } from '../../core/fault.ts'
import { parseListenAddress, type ListenAddress } from '../../nbd/address.ts'
import type { Stage } from '../driver.ts'

export interface NbdTarget {
  readonly address: ListenAddress
  readonly exportName: string
}

/** Assigned by IANA. */
const NBD_PORT = 10_809

/**
 * Reads `unix:PATH`, `HOST`, `HOST:PORT`, and `//HOST:PORT/EXPORT` as it stands in an NBD URI; the export's name may be in
 * the setting `export` instead. Without a name it is the server's default export.
 * @throws Fault INVALID
 */
export function parseTarget({ target, settings }: Stage): NbdTarget {
  const named = settings.get('export')
  if (!target.startsWith('//')) return { address: addressOf(target), exportName: named ?? '' }
  const [, host = '', path = ''] = /^\/\/([^/]*)\/?(.*)$/s.exec(target) ?? []
  if (named !== undefined && path !== '') {
    throw new Fault('INVALID', 'an export is named twice', {
      where: `nbd:${target}`,
      remedy: 'name it in the address or with export=, not both',
    })
  }
  return { address: addressOf(host), exportName: named ?? path }
}

function addressOf(text: string): ListenAddress {
  if (text.startsWith('unix:')) return parseListenAddress(text)
  const hasPort = /:\d+$/.test(text) && !/^[^[]*:.*:/.test(text)
  try {
    return { kind: 'tcp', ...parseHostPort(hasPort ? text : `${text}:${NBD_PORT}`) }
  } catch (cause) {
    throw new Fault('INVALID', `not the address of an NBD server: "${text}"`, {
      remedy: 'write nbd:unix:PATH, nbd:HOST:PORT or nbd:[IPV6]:PORT',
      cause,
    })
  }
}
