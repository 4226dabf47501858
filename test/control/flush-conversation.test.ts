import fc from 'fast-check'
import t from 'tap'

import { FlushConversation } from '../../control/flush-conversation.ts'

/** A conversation whose flushes end when the test says so. */
class Talk {
  answers: string[] = []
  begins = 0
  /** Ends the flush that runs. */
  #end: ((done: boolean) => void) | undefined
  readonly conversation = new FlushConversation({
    begin: () => (this.begins += 1),
    flush: () =>
      new Promise((resolve) => {
        this.#end = resolve
      }),
    answer: (answer) => this.answers.push(answer),
  })

  say(...pieces: string[]): this {
    for (const piece of pieces) this.conversation.receive(Buffer.from(piece, 'latin1'))
    return this
  }

  get running(): boolean {
    return this.#end !== undefined
  }

  async end(done: boolean): Promise<string[]> {
    this.#end?.(done)
    this.#end = undefined
    await this.conversation.idle
    return this.answers
  }
}

void t.test('a flush is answered with what became of it', async (t) => {
  t.same(await new Talk().say('flush').end(true), ['done'])
  t.same(await new Talk().say('flush').end(false), ['fail'])
  const talk = new Talk()
  for (const round of [1, 2, 3]) {
    talk.say('flush')
    t.equal((await talk.end(true)).length, round)
  }
  t.equal(talk.begins, 3)
})

void t.test('a flush is found however it is cut, and whatever space is around it', async (t) => {
  for (const pieces of [
    ['f', 'l', 'u', 's', 'h'],
    ['flu', 'sh'],
    ['flush\n'],
    ['\n \0', '\r\nfl', 'ush', '\n'],
  ])
    t.same(await new Talk().say(...pieces).end(true), ['done'], JSON.stringify(pieces))
})

void t.test('a flush while another is running fails, after the answer to that one', async (t) => {
  const talk = new Talk().say('flushflush', 'flush')
  t.same(talk.answers, [])
  t.same(await talk.end(true), ['done', 'fail', 'fail'])
  t.same(await talk.say('flush').end(true), ['done', 'fail', 'fail', 'done'])
})

void t.test('garbage gets one failure a piece, and a flush after it works', async (t) => {
  for (const garbage of ['nonsense', 'flusXXXX', 'fflush', 'FLUSH', '\x80', 'x'.repeat(100_000)]) {
    const talk = new Talk().say(garbage)
    t.same(talk.answers, ['fail'], garbage.slice(0, 10))
    t.same(await talk.say('flush').end(true), ['fail', 'done'])
  }
  const talk = new Talk().say('flush', 'nonsense')
  t.same(talk.answers, [], 'not before the answer to what came before it')
  t.same(await talk.end(true), ['done', 'fail'])
  t.same(await new Talk().say('flu', 'x', 'flush').end(true), ['fail', 'done'])
})

void t.test('there is no "done" without a flush that was done', async () => {
  const piece = fc.oneof(
    fc.constantFrom('flush', 'fl', 'ush', '\n', 'END', 'FAIL'),
    fc.string({ maxLength: 10, unit: 'binary' }),
  )
  await fc.assert(
    fc.asyncProperty(fc.array(piece, { maxLength: 20 }), async (pieces) => {
      const talk = new Talk()
      let done = 0
      for (const each of pieces) {
        if (each !== 'END' && each !== 'FAIL') talk.say(each)
        else {
          if (each === 'END' && talk.running) done += 1
          await talk.end(each === 'END')
        }
      }
      await talk.end(false)
      return talk.answers.filter((answer) => answer === 'done').length === done
    }),
  )
})
