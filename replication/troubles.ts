/** What is wrong with a group now, by what it concerns: each is said once, and goes when that works again. */

import type { GroupEnvironment } from './environment.ts'

export class Troubles {
  readonly #group: string
  readonly #environment: Pick<GroupEnvironment, 'logger' | 'onEvent'>
  readonly #errors = new Map<string, string>()

  constructor(group: string, environment: Pick<GroupEnvironment, 'logger' | 'onEvent'>) {
    this.#group = group
    this.#environment = environment
  }

  /** The oldest, for status. */
  get first(): string | null {
    return [...this.#errors.values()][0] ?? null
  }

  report(what: string, error: string): void {
    if (error === this.#errors.get(what)) return
    this.#errors.set(what, error)
    const { logger, onEvent } = this.#environment
    logger.error({ group: this.#group, error }, 'replication error')
    onEvent({ event: 'REPLICATION_ERROR', data: { group: this.#group, error } })
  }

  concerns(what: string): boolean {
    return this.#errors.has(what)
  }

  over(what: string): void {
    this.#errors.delete(what)
  }
}
