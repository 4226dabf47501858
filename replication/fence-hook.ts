/**
 * The operator's program that makes sure that the other side does not serve any more (fences it), asked before a side goes
 * on without the other one.
 *
 * Exit code 0: the other side is fenced, go on. Everything else, also a program that cannot be run or takes too long: do not.
 * It gets what it has to know in its environment: COLOTAP_GROUP, COLOTAP_ACTION (promote: a secondary would take over;
 * continue: a primary would go on alone), COLOTAP_PEER, COLOTAP_CHECKPOINT and COLOTAP_TERM.
 */

import { execFile } from 'node:child_process'

export interface FenceRequest {
  readonly group: string
  readonly action: 'promote' | 'continue'
  /** The other side's address, as far as it is known. */
  readonly peer: string
  readonly checkpoint: number
  readonly term: number
}

export interface FenceOutcome {
  readonly fenced: boolean
  /** What the program said, or why there is no answer; for the log. */
  readonly detail: string
}

/** A program that fences machines waits for power switches. */
const PATIENCE_MS = 120_000
const MOST_OUTPUT = 64 * 1024

export function runFenceHook(program: string, request: FenceRequest): Promise<FenceOutcome> {
  const { group, action, peer, checkpoint, term } = request
  const env = {
    ...process.env,
    COLOTAP_GROUP: group,
    COLOTAP_ACTION: action,
    COLOTAP_PEER: peer,
    COLOTAP_CHECKPOINT: String(checkpoint),
    COLOTAP_TERM: String(term),
  }
  return new Promise((resolve) => {
    const options = {
      env,
      timeout: PATIENCE_MS,
      killSignal: 'SIGKILL',
      maxBuffer: MOST_OUTPUT,
    } as const
    execFile(program, [], options, (error, stdout, stderr) => {
      const said = `${stdout}${stderr}`.trim()
      if (error === null) resolve({ fenced: true, detail: said })
      else resolve({ fenced: false, detail: said === '' ? error.message : said })
    })
  })
}
