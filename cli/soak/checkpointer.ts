/** Takes checkpoints of a pair at an interval, and knows what each of them may hold. */

import type { CheckpointLog } from './checkpoint-log.ts'
import type { Guests } from './guests.ts'
import type { GroupControl } from './side.ts'
import type { Tally } from './tally.ts'
import { patiently, Violation } from './violation.ts'

/** A link that broke a moment ago may not be known to be broken yet, so a first failure proves nothing. */
const ATTEMPTS = 5

export interface CheckpointerOptions {
  readonly primary: GroupControl
  readonly log: CheckpointLog
  readonly guests: Guests
  /** Milliseconds from the beginning of one checkpoint to the next. */
  readonly intervalMs: number
  readonly tally: Tally
}

export class Checkpointer {
  /** Whether the guest stands still during a checkpoint, as a VM does whose memory is saved as well. */
  pauses = false
  readonly #options: CheckpointerOptions
  #stopped = true
  #wake: () => void = () => undefined
  #running: Promise<void> = Promise.resolve()
  #violation: string | undefined

  constructor(options: CheckpointerOptions) {
    this.#options = options
  }

  start(): void {
    this.#stopped = false
    this.#running = this.#loop()
  }

  /** Resolves when no checkpoint is under way any more. @throws Violation when one was numbered wrongly */
  async stop(): Promise<void> {
    this.#stopped = true
    this.#wake()
    await patiently(this.#running, 'the answer to a checkpoint command')
    if (this.#violation !== undefined) throw new Violation(this.#violation)
  }

  /** One checkpoint of a pair that nothing disturbs, which has to succeed. */
  async take(): Promise<void> {
    let failure: string | undefined
    for (let attempt = 1; attempt <= ATTEMPTS; attempt += 1) {
      await this.#options.primary.until('protection', (status) => status.protection === 'protected')
      failure = await this.#attempt()
      if (this.#violation !== undefined) throw new Violation(this.#violation)
      if (failure === undefined) return
    }
    throw new Violation(
      `a checkpoint of a protected pair failed ${ATTEMPTS} times: ${failure ?? ''}`,
    )
  }

  async #loop(): Promise<void> {
    while (!this.#stopped) {
      const startedMs = performance.now()
      const resume = this.pauses ? this.#options.guests.hold() : undefined
      await this.#attempt()
      resume?.()
      await this.#sleep(this.#options.intervalMs - (performance.now() - startedMs))
    }
  }

  /** @returns why it is not known to be committed */
  async #attempt(): Promise<string | undefined> {
    const { primary, log, tally } = this.#options
    log.begin()
    try {
      const result = await primary.checkpoint()
      this.#violation ??= log.confirm(result.checkpoint)
      tally.countCheckpoint(result)
      return undefined
    } catch (error) {
      log.fail()
      tally.unconfirmed += 1
      return error instanceof Error ? error.message : String(error)
    }
  }

  #sleep(ms: number): Promise<void> {
    // At least a turn of the event loop, so that a failing primary is not asked without end.
    if (this.#stopped) return Promise.resolve()
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, Math.max(1, ms))
      this.#wake = () => {
        clearTimeout(timer)
        resolve()
      }
    })
  }
}
