/** Whether a primary may go on without its secondary: by its configuration, or because somebody has answered that it may. */

export interface LinkLossSettings {
  readonly onLinkLoss: 'continue' | 'freeze'
  /** Somebody is asked, before the guest may write without a secondary, whether the other side is fenced. */
  readonly fences: boolean
}

export class LinkLossPolicy {
  readonly #fences: boolean
  #onLinkLoss: 'continue' | 'freeze'
  #released = false

  constructor({ onLinkLoss, fences }: LinkLossSettings) {
    this.#onLinkLoss = onLinkLoss
    this.#fences = fences
  }

  /** Whether no write is begun or acknowledged while there is no secondary. */
  get freezes(): boolean {
    return (this.#onLinkLoss === 'freeze' || this.#fences) && !this.#released
  }

  /** Said by an operator, it also stands for the answer of whoever fences. */
  configure(onLinkLoss: 'continue' | 'freeze'): void {
    this.#onLinkLoss = onLinkLoss
    this.#released = onLinkLoss === 'continue'
  }

  /** This loss is over: the primary may go on alone, until a secondary has followed it again. */
  release(): void {
    this.#released = true
  }

  /** A secondary follows: the next loss is a new one. */
  arm(): void {
    this.#released = false
  }
}
