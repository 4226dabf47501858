/**
 * One QMP conversation without its socket: JSON texts in, lines out. (The protocol is QEMU's; docs/control.md says what
 * of it is spoken here.)
 *
 * Invariants:
 *  - Every text gets exactly one reply, whatever it holds; a bad one changes nothing.
 *  - Nothing but qmp_capabilities runs before the negotiation, and no event is shown before it.
 *  - Only a bug of ours makes answer() reject.
 */

import { Fault } from '../core/fault.ts'
import type { MaybePromise } from '../core/maybe-promise.ts'
import { quote } from './arguments.ts'
import type { ControlContext } from './command.ts'
import { COMMANDS } from './commands.ts'
import type { StampedEvent } from './events.ts'
import { versionReply } from './version.ts'

type ErrorClass = 'GenericError' | 'CommandNotFound'

/** A request that cannot be carried out; `class` is QMP's. */
class Refusal extends Error {
  readonly class: ErrorClass
  constructor(kind: ErrorClass, desc: string) {
    super(desc)
    this.class = kind
  }
}

interface Request {
  readonly execute: string
  readonly arguments: Readonly<Record<string, unknown>>
}

export class QmpSession {
  readonly #context: ControlContext
  #negotiated = false

  constructor(context: ControlContext) {
    this.#context = context
  }

  /** The first line that a client sees. Out-of-band execution is not offered: another connection serves for that. */
  greeting(): string {
    return line({ QMP: { version: versionReply(), capabilities: [] } })
  }

  /** The reply to one text of a JsonFramer, which bounds its depth. Give the next one when this one is answered. */
  async answer(text: string): Promise<string> {
    let id: unknown
    try {
      const object = parseObject(text)
      id = object['id']
      return line({ return: await this.#execute(requestIn(object)), ...echo(id) })
    } catch (error) {
      return line({ error: errorReply(error), ...echo(id) })
    }
  }

  /** The reply to bytes in which no JSON text could be found. */
  refuse(reason: string): string {
    return line({ error: { class: 'GenericError', desc: `QMP input refused: ${reason}` } })
  }

  /** The line that shows `event`, when the client has negotiated. */
  show(event: StampedEvent): string | undefined {
    return this.#negotiated ? line(event) : undefined
  }

  #execute(request: Request): MaybePromise<unknown> {
    const { execute: name, arguments: args } = request
    if (name === 'qmp_capabilities') return this.#negotiate(args)
    if (!this.#negotiated) {
      throw new Refusal(
        'CommandNotFound',
        `Expecting capabilities negotiation with 'qmp_capabilities', not ${quote(name)}`,
      )
    }
    const command = COMMANDS.get(name)
    if (command === undefined) {
      throw new Refusal('CommandNotFound', `The command ${quote(name)} has not been found`)
    }
    return command.execute(this.#context, args)
  }

  #negotiate(args: Readonly<Record<string, unknown>>): object {
    if (this.#negotiated) {
      throw new Refusal(
        'CommandNotFound',
        'Capabilities negotiation is already complete, command ignored',
      )
    }
    for (const name of Object.keys(args)) {
      if (name !== 'enable')
        throw generic(`Parameter ${quote(name)} is unexpected: allowed: enable`)
    }
    const enable = args['enable'] ?? []
    if (!Array.isArray(enable)) throw generic("Parameter 'enable' must be an array of capabilities")
    const [wanted] = enable as unknown[]
    if (wanted !== undefined) {
      const name = typeof wanted === 'string' ? quote(wanted) : 'that is no string'
      throw generic(`Capability ${name} is not available: there are none to enable`)
    }
    this.#negotiated = true
    return {}
  }
}

function parseObject(text: string): Readonly<Record<string, unknown>> {
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error)
    throw generic(`JSON parse error: ${quote(reason)}`)
  }
  if (!isObject(value)) throw generic('QMP input must be a JSON object')
  return value
}

function requestIn(object: Readonly<Record<string, unknown>>): Request {
  for (const name of Object.keys(object)) {
    if (name !== 'execute' && name !== 'arguments' && name !== 'id') {
      throw generic(`QMP input member ${quote(name)} is unexpected`)
    }
  }
  const { execute, arguments: args = {} } = object
  if (execute === undefined) throw generic("QMP input lacks member 'execute'")
  if (typeof execute !== 'string') throw generic("QMP input member 'execute' must be a string")
  if (!isObject(args)) throw generic("QMP input member 'arguments' must be an object")
  return { execute, arguments: args }
}

function isObject(value: unknown): value is Readonly<Record<string, unknown>> {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

/** A request without an id is answered without one; null is an id. */
function echo(id: unknown): object {
  return id === undefined ? {} : { id }
}

function generic(desc: string): Refusal {
  return new Refusal('GenericError', desc)
}

function errorReply(error: unknown): { class: ErrorClass; desc: string } {
  if (error instanceof Refusal) return { class: error.class, desc: error.message }
  if (error instanceof Fault) return { class: 'GenericError', desc: error.message }
  throw error
}

function line(message: object): string {
  return `${JSON.stringify(message)}\r\n`
}
