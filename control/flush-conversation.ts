/**
 * What blktap2's checkpoint sockets speak: the client writes `flush`, the answer is `done` or `fail`. No lengths, no line ends.
 *
 * Invariants:
 *  - A `flush` is found however it was cut; white space and zero bytes between two (what `echo` adds) mean nothing.
 *  - Whatever else arrives in one piece is answered by one `fail`, and the rest of that piece is dropped with it.
 *  - Answers come in the order of what they answer. What arrives while a flush is running fails.
 *  - Held: how much of a `flush` has arrived, and the number of answers that are owed.
 */

export type FlushAnswer = 'done' | 'fail'

export interface FlushParty {
  /** Nothing is owed to the client, and it has sent something. */
  begin?(): void
  /** Resolves with whether the checkpoint is known to be committed. Rejects only for a bug of ours. */
  flush(): Promise<boolean>
  answer(answer: FlushAnswer): void
}

const FLUSH = Buffer.from('flush')
const MEANINGLESS = Buffer.from(' \t\r\n\0')

export class FlushConversation {
  readonly #party: FlushParty
  /** Bytes of a `flush` that have arrived. */
  #matched = 0
  #running: Promise<void> | undefined
  /** Answers that follow the one to the flush that runs. */
  #failures = 0

  constructor(party: FlushParty) {
    this.#party = party
  }

  /** Resolves when everything that has arrived is answered. */
  get idle(): Promise<void> {
    return this.#running ?? Promise.resolve()
  }

  receive(piece: Buffer): void {
    for (const byte of piece) {
      if (this.#matched === 0 && MEANINGLESS.includes(byte)) continue
      if (byte !== FLUSH[this.#matched]) {
        this.#matched = 0
        return this.#fail()
      }
      this.#matched += 1
      if (this.#matched === FLUSH.length) this.#flush()
    }
  }

  #flush(): void {
    this.#matched = 0
    if (this.#running !== undefined) return this.#fail()
    this.#party.begin?.()
    this.#running = this.#run()
  }

  async #run(): Promise<void> {
    const done = await this.#party.flush()
    this.#running = undefined
    this.#party.answer(done ? 'done' : 'fail')
    const failures = this.#failures
    this.#failures = 0
    for (let told = 0; told < failures; told += 1) this.#party.answer('fail')
  }

  #fail(): void {
    if (this.#running !== undefined) {
      this.#failures += 1
      return
    }
    this.#party.begin?.()
    this.#party.answer('fail')
  }
}
