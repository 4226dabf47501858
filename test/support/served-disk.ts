/** A disk named `disk`, served by a colotap process of its own, over each backend that needs no image format. */

import path from 'node:path'
import type { Exit } from './child.ts'
import { serveColotap, type ColotapServer } from './colotap.ts'
import { createEmptyImage } from './images.ts'
import { tempDirectory, type Scope } from './scope.ts'

export const BACKENDS = ['aio', 'ram'] as const
export type Backend = (typeof BACKENDS)[number]

export interface ServedDisk {
  readonly server: ColotapServer
  readonly uri: string
  readonly size: number
  /** A directory of the test's own, where sockets and images are. */
  readonly directory: string
  /** The image file, where the backend has one. */
  readonly image: string | undefined
}

/** Serves an empty disk of `size` bytes. */
export async function serveDisk(
  scope: Scope,
  backend: Backend,
  size: number,
  args: readonly string[] = [],
): Promise<ServedDisk> {
  const directory = await tempDirectory(scope)
  const image = backend === 'aio' ? path.join(directory, 'disk.img') : undefined
  if (image !== undefined) await createEmptyImage(image, size)
  const pipeline = image === undefined ? `ram:${size}` : `aio:${image}`
  const server = await serveColotap(scope, { exports: { disk: pipeline }, directory, args })
  return { server, uri: server.uri('disk'), size, directory, image }
}

/** What a server that was asked to stop must answer. */
export const CLEAN_EXIT: Exit = { code: 0, signal: null }
