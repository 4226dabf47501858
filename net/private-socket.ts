/** A listening unix socket that only its owner can ever connect to, or those that a mode lets in (private-node.ts). */

import { once } from 'node:events'
import { connect, type Server } from 'node:net'

import { hasCode, makePrivateNode, type PrivateNode } from './private-node.ts'

/** The longest path that fits sockaddr_un with its closing zero (unix(7)). */
const LONGEST_PATH = 107

export type PrivateSocket = PrivateNode

/**
 * Makes `server` listen on `given`; `what` names the socket in messages.
 * @throws Fault IN_USE when a living server or something else has the path, INVALID when it is too long, else IO.
 */
export function listenPrivately(
  server: Server,
  given: string,
  what: string,
  mode = 0o600,
): Promise<PrivateSocket> {
  return makePrivateNode(
    {
      what,
      mode,
      longestPath: LONGEST_PATH,
      make: async (path) => {
        const listening = once(server, 'listening') // rejects with the 'error' event when binding fails
        server.listen(path)
        await listening
      },
      unmake: () => server.close(),
      isOne: (found) => found.isSocket(),
      inUse: answers,
    },
    given,
  )
}

/** Whether somebody listens. Only a refused connection proves that nobody does. */
function answers(path: string): Promise<boolean> {
  return new Promise((done) => {
    const probe = connect(path)
    probe.once('connect', () => {
      probe.destroy()
      done(true)
    })
    probe.once('error', (error) => {
      done(!hasCode(error, 'ECONNREFUSED'))
    })
  })
}
