/**
 * How a primary reaches its secondary: over TCP, and over TLS where it has credentials, never over less than it has.
 *
 * Invariant: each attempt ends in one call of `connected` or `failed`, or is given up before; it is given up by itself when
 * the other side takes too long to prove who it is.
 */

import { connect } from 'node:net'

import type { Logger } from '../core/logger.ts'
import type { Credentials } from '../net/credentials.ts'
import { secureDialled } from '../net/secure-socket.ts'
import type { Dial } from './environment.ts'
import { SocketLink } from './link.ts'

const HANDSHAKE_DEADLINE_MS = 10_000

/** What makes a link more than TCP. */
export interface LinkSecurity {
  readonly credentials: Credentials
  /** The name that the other side's certificate must have; a secondary takes any of the authority's by default. */
  readonly peerName: string | undefined
}

interface Target {
  readonly host: string
  readonly port: number
  readonly security: LinkSecurity | undefined
  readonly logger: Logger
  /** How long a TLS handshake may take. */
  readonly deadlineMs?: number
}

export function dialTo(target: Target): Dial {
  return target.security === undefined ? tcpDial(target) : tlsDial(target, target.security)
}

function tcpDial({ host, port }: Target): Dial {
  return (connected, failed) => {
    const socket = connect({ host, port })
    // The link is the first to read.
    socket.pause()
    const fail = (error: Error): void => failed(error.message)
    socket.once('error', fail)
    socket.once('connect', () => {
      socket.off('error', fail)
      connected((handlers) => new SocketLink(socket, handlers, 'in-place'))
    })
    return () => socket.destroy()
  }
}

function tlsDial(target: Target, security: LinkSecurity): Dial {
  return (connected, failed) => {
    const attempt = new Attempt(failed)
    void security.credentials.current(target.logger).then((material) => {
      if (attempt.ended) return
      const { host, port, logger, deadlineMs = HANDSHAKE_DEADLINE_MS } = target
      const socket = connect({ host, port })
      attempt.abandon = () => socket.destroy()
      socket.on('error', (error) => attempt.fail(error.message))
      socket.once('connect', () => {
        attempt.limit(deadlineMs, 'TLS: it did not finish the handshake in time')
        secureDialled(socket, material, security.peerName ?? host, {
          secured: (secure, identity) => {
            if (!attempt.end()) return
            logger.info({ peer: `${host}:${port}`, identity }, 'the secondary has proved itself')
            connected((handlers) => new SocketLink(secure, handlers, 'copying'))
          },
          failed: (reason) => attempt.fail(`TLS: ${reason}`),
        })
      })
    })
    return () => attempt.giveUp()
  }
}

/** Ends once: by success, failure, its deadline or because it is given up. */
class Attempt {
  /** Frees what the attempt holds, unless it succeeds. */
  abandon: () => void = () => undefined
  readonly #failed: (reason: string) => void
  #deadline: NodeJS.Timeout | undefined
  #ended = false

  constructor(failed: (reason: string) => void) {
    this.#failed = failed
  }

  get ended(): boolean {
    return this.#ended
  }

  limit(ms: number, reason: string): void {
    if (!this.#ended) this.#deadline = setTimeout(() => this.fail(reason), ms)
  }

  /** @returns false when it had ended before */
  end(): boolean {
    if (this.#ended) return false
    this.#ended = true
    clearTimeout(this.#deadline)
    return true
  }

  giveUp(): void {
    if (this.end()) this.abandon()
  }

  fail(reason: string): void {
    if (!this.end()) return
    this.abandon()
    this.#failed(reason)
  }
}
