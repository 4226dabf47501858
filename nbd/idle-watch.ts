/**
 * Drops clients that take no step for too long while something depends on it.
 *
 * Invariant: only time counts during which the watch applied to the client and it took no step, in `CHECKS` parts, so
 * that a client is dropped after at least (CHECKS - 1) / CHECKS of its patience, and at most one part after it.
 */

/** For which clients a watch looks, at what, and how it ends. */
export interface Watch<Client> {
  /** Whether somebody waits for this client now. */
  applies(client: Client): boolean
  /** A number that changes with every step the client takes. */
  stepsOf(client: Client): number
  drop(client: Client): void
}

const CHECKS = 4

export class IdleWatch<Client> {
  readonly #patienceMs: number
  readonly #clients: Iterable<Client>
  readonly #watch: Watch<Client>
  readonly #seen = new Map<Client, { steps: number; checks: number }>()
  #timer: NodeJS.Timeout | undefined

  constructor(patienceMs: number, clients: Iterable<Client>, watch: Watch<Client>) {
    this.#patienceMs = patienceMs
    this.#clients = clients
    this.#watch = watch
  }

  start(): void {
    this.#timer ??= setInterval(this.#check, Math.ceil(this.#patienceMs / CHECKS)).unref()
  }

  stop(): void {
    clearInterval(this.#timer)
  }

  /** The client is gone. */
  forget(client: Client): void {
    this.#seen.delete(client)
  }

  readonly #check = (): void => {
    for (const client of this.#clients) {
      const seen = this.#seen.get(client)
      const steps = this.#watch.stepsOf(client)
      if (!this.#watch.applies(client)) {
        this.#seen.delete(client)
      } else if (seen?.steps !== steps) {
        this.#seen.set(client, { steps, checks: 0 })
      } else {
        seen.checks += 1
        if (seen.checks >= CHECKS) this.#watch.drop(client)
      }
    }
  }
}
