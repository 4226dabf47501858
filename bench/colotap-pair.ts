/** A replicating pair of colotap servers on loopback. */

import { mkdir } from 'node:fs/promises'
import path from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { serveColotap, type ColotapServer } from '../test/support/colotap.ts'
import type { QmpClient } from '../test/support/qmp.ts'
import { freePorts, type Scope } from '../test/support/scope.ts'
import type { Pair } from './pair.ts'

const PATIENCE_MS = 300_000
const POLL_MS = 50

export interface ColotapPair extends Pair {
  readonly primary: ColotapServer
  readonly secondary: ColotapServer
  readonly primaryQmp: QmpClient
  readonly secondaryQmp: QmpClient
}

/** `settings` are more keys for both sides, such as `durability=memory`. */
export async function startColotapPair(
  scope: Scope,
  primaryImage: string,
  secondaryImage: string,
  settings: readonly string[] = [],
): Promise<ColotapPair> {
  const [port] = await freePorts(1)
  const serve = async (role: string, image: string): Promise<ColotapServer> => {
    const directory = path.join(path.dirname(image), role)
    await mkdir(directory)
    const keys = [`role=${role}`, 'group=bench', ...settings].join('&')
    const server = await serveColotap(scope, {
      exports: { disk: `colo:127.0.0.1:${port ?? 0}?${keys}|aio:${image}` },
      directory,
      args: ['--log-level', 'warn'],
    })
    scope.teardown(() => server.stop())
    return server
  }
  const secondary = await serve('secondary', secondaryImage)
  const primary = await serve('primary', primaryImage)
  const primaryQmp = await primary.qmp()
  await untilProtected(primaryQmp)
  return {
    uri: primary.uri('disk'),
    ...{ primary, secondary, primaryQmp, secondaryQmp: await secondary.qmp() },
    async checkpoint() {
      const started = performance.now()
      await primaryQmp.execute('replication-checkpoint')
      return { milliseconds: performance.now() - started }
    },
    durable: async () => (await status(primaryQmp)).durable,
  }
}

async function untilProtected(qmp: QmpClient): Promise<void> {
  const deadline = Date.now() + PATIENCE_MS
  for (;;) {
    const group = await status(qmp)
    if (group.protection === 'protected') return
    if (Date.now() > deadline)
      throw new Error(`the pair is not protected: ${JSON.stringify(group)}`)
    await delay(POLL_MS)
  }
}

interface Status {
  readonly protection: string
  readonly durable: boolean
}

/** The status of the one group that the server has. */
async function status(qmp: QmpClient): Promise<Status> {
  const { groups } = (await qmp.execute('replication-status')) as { groups: [Status] }
  return groups[0]
}
