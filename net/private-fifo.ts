/**
 * A FIFO that only its owner can open, held open for reading and writing by this process: readers and writers come and go
 * without our seeing an end of file, and without our waiting for them.
 */

import { execFile } from 'node:child_process'
import { closeSync, constants, openSync } from 'node:fs'
import { promisify } from 'node:util'

import { makePrivateNode, type PrivateNode } from './private-node.ts'

const run = promisify(execFile)

export interface PrivateFifo extends PrivateNode {
  /** Open for reading and writing, without ever waiting. Whoever made the FIFO closes it. */
  readonly fd: number
}

/**
 * Makes a FIFO at `given` and opens it; `what` names it in messages. A FIFO that is there already is replaced: nobody can tell
 * whether a server or only a client has it open, so the caller first makes sure that no other server does.
 * @throws Fault IN_USE when something else has the path, else IO.
 */
export async function makePrivateFifo(given: string, what: string): Promise<PrivateFifo> {
  let fd = -1
  const node = await makePrivateNode(
    {
      what,
      make: async (path) => {
        // Node has no mkfifo(3). The program is part of every system that has FIFOs.
        await run('mkfifo', ['-m', '600', path])
        fd = openSync(path, constants.O_RDWR | constants.O_NONBLOCK)
      },
      unmake: () => closeSync(fd),
      isOne: (found) => found.isFIFO(),
      inUse: () => Promise.resolve(false),
    },
    given,
  )
  return { ...node, fd }
}
