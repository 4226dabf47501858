/**
 * Faults: what goes wrong outside colotap (a bad disk, image, peer, client or command), as opposed to bugs,
 * which are assertions (assert.ts). Every fault says what happened, where, and what to do next.
 */

/** Each code with its one-line meaning. Adapters (NBD, QMP, CLI) map codes to their own numbers. */
export const FAULT_CODES = {
  IO: 'the storage below reported an error',
  NO_SPACE: 'the storage below is full, or the request ends beyond the end of the disk',
  NO_MEMORY: 'a memory limit would be exceeded',
  INVALID: 'the request or argument is not valid',
  NOT_PERMITTED: 'the request is not allowed in this state or by this configuration',
  NOT_SUPPORTED: 'the disk or driver cannot do this',
  NOT_FOUND: 'a named thing does not exist',
  IN_USE: 'a resource is held by someone else',
  TIMEOUT: 'something did not answer in time',
  LINK_LOST: 'the connection to the peer or client is gone',
  PROTOCOL: 'a peer or client broke the protocol',
  REFUSED: 'a peer refused',
  SHUTDOWN: 'colotap or this part of it is shutting down',
} as const

export type FaultCode = keyof typeof FAULT_CODES

export interface FaultContext {
  /** Where it happened: a path, address, disk, offset. */
  readonly where?: string
  /** What the reader can do about it, as an imperative sentence. */
  readonly remedy?: string
  readonly cause?: unknown
}

/** A reported failure of the outside world. Never thrown for our own bugs. */
export class Fault extends Error {
  override readonly name = 'Fault'
  readonly code: FaultCode
  readonly what: string
  readonly where: string | undefined
  readonly remedy: string | undefined

  constructor(code: FaultCode, what: string, context: FaultContext = {}) {
    super(sentence(what, context), context.cause === undefined ? {} : { cause: context.cause })
    this.code = code
    this.what = what
    this.where = context.where
    this.remedy = context.remedy
  }
}

/** `what: where (remedy)` on one line, whatever the parts contain. */
function sentence(what: string, { where, remedy }: FaultContext): string {
  const place = where === undefined ? '' : `: ${where}`
  const advice = remedy === undefined ? '' : ` (${remedy})`
  return `${what}${place}${advice}`.replaceAll(/[\r\n]+/g, ' ')
}

/** The same error if it is a fault already; otherwise a fault of `code` that keeps the original as its cause. */
export function asFault(
  error: unknown,
  code: FaultCode,
  what: string,
  context: FaultContext = {},
): Fault {
  if (error instanceof Fault) return error
  const reason = error instanceof Error ? error.message : String(error)
  return new Fault(code, `${what}: ${reason}`, { ...context, cause: error })
}
