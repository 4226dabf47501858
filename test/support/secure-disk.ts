/** A disk named `disk`, served by a colotap process of its own that demands TLS, and how clients of others say that they have it. */

import path from 'node:path'

import { Authority, writePskFile } from './certificates.ts'
import { serveColotap, type ColotapServer } from './colotap.ts'
import { createEmptyImage } from './images.ts'
import { freePorts, tempDirectory, type Scope } from './scope.ts'

export const PROOFS = ['certificates', 'keys'] as const
export type Proof = (typeof PROOFS)[number]

/** Whom the certificate and the key of the client name. */
export const CLIENT = 'vm1'

export interface SecureDisk {
  readonly server: ColotapServer
  readonly directory: string
  readonly image: string
  readonly port: number
  /** For libnbd: nbdinfo, nbdcopy, nbdsh and fio. */
  readonly uri: string
  /** The same over the unix socket, which demands TLS as well. */
  readonly unixUri: string
  /** For colotap: what follows `nbd:HOST:PORT?`. */
  readonly settings: string
  /** For QEMU: the options that make the credentials, as `tls`. */
  readonly object: readonly string[]
  /** For QEMU: the disk, as --image-opts and --target-image-opts take it. */
  readonly imageOptions: string
  /** For nbdkit's nbd plugin. */
  readonly plugin: readonly string[]
}

interface SecureOptions {
  readonly size: number
  /** Further exports by name, and further arguments. */
  readonly exports?: Readonly<Record<string, string>>
  readonly args?: readonly string[]
}

export async function serveSecureDisk(
  scope: Scope,
  proof: Proof,
  { size, exports = {}, args = [] }: SecureOptions,
): Promise<SecureDisk> {
  const directory = await tempDirectory(scope)
  const image = path.join(directory, 'disk.img')
  await createEmptyImage(image, size)
  const [port] = await freePorts(1)
  if (port === undefined) throw new Error('no free port')
  const tls = await credentials(scope, proof, directory)
  const socket = path.join(directory, 'tls.sock')
  const server = await serveColotap(scope, {
    exports: { disk: `aio:${image}`, ...exports },
    directory,
    args: [
      ...['--listen', `tcp:127.0.0.1:${port}?${tls.server}`],
      ...['--listen', `unix:${socket}?${tls.server}`, ...args],
    ],
  })
  const user = proof === 'keys' ? `${CLIENT}@` : ''
  return {
    ...{ server, directory, image, port },
    ...{ object: tls.object, plugin: tls.plugin, settings: tls.settings },
    uri: `nbds://${user}127.0.0.1:${port}/disk?${tls.libnbd}`,
    unixUri: `nbds+unix://${user}/disk?socket=${socket}&${tls.libnbd}`,
    imageOptions: `driver=nbd,host=127.0.0.1,port=${port},export=disk,tls-creds=tls`,
  }
}

interface Tls {
  readonly server: string
  readonly libnbd: string
  readonly settings: string
  readonly object: readonly string[]
  readonly plugin: readonly string[]
}

async function credentials(scope: Scope, proof: Proof, directory: string): Promise<Tls> {
  if (proof === 'keys') {
    const file = await writePskFile(path.join(directory, 'keys.psk'), [CLIENT, 'vm2'])
    const settings = `tls-psk=${file}&tls-user=${CLIENT}`
    const id = `tls-creds-psk,id=tls,endpoint=client,dir=${directory},username=${CLIENT}`
    return {
      server: `tls-psk=${file}`,
      libnbd: `tls-psk-file=${file}`,
      settings,
      object: ['--object', id],
      plugin: [`tls-psk=${file}`, `tls-username=${CLIENT}`],
    }
  }
  const authority = await Authority.make(scope, path.join(directory, 'ca'))
  const own = await authority.issue(path.join(directory, 'server'), 'server')
  const client = await authority.issue(path.join(directory, 'client'), 'client', {
    subject: CLIENT,
  })
  return {
    server: `tls-creds=${own}`,
    libnbd: `tls-certificates=${client}`,
    settings: `tls-creds=${client}`,
    object: ['--object', `tls-creds-x509,id=tls,endpoint=client,dir=${client}`],
    plugin: [`tls-certificates=${client}`],
  }
}
