/** Servers that do not announce when they are ready: the first accepted connection says so. */

import net from 'node:net'
import { setTimeout as delay } from 'node:timers/promises'
import type { Child } from './child.ts'

const PATIENCE_MS = 30_000
const POLL_MS = 20

/** Resolves when `server` accepts connections on the unix socket. */
export async function untilConnects(server: Child, socket: string): Promise<void> {
  const deadline = Date.now() + PATIENCE_MS
  while (!(await connects(socket))) {
    if (server.ended || Date.now() > deadline)
      throw new Error(`nobody listens on ${socket}: ${server.stderr}`)
    await delay(POLL_MS)
  }
}

function connects(socket: string): Promise<boolean> {
  return new Promise((resolve) => {
    const client = net.connect(socket)
    client.once('connect', () => {
      client.destroy()
      resolve(true)
    })
    client.once('error', () => resolve(false))
  })
}
