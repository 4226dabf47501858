import t from 'tap'

import type { ControlContext, ServedPipeline } from '../../control/command.ts'
import { COMMANDS } from '../../control/commands.ts'
import { Fault } from '../../core/fault.ts'
import { contextOf } from './fake-group.ts'

/** A pipeline that notes what it is told. */
class FakePipeline implements ServedPipeline {
  readonly calls: string[] = []
  readonly #name: string
  #paused = false
  #pipeline = 'ram:1M'

  constructor(name: string) {
    this.#name = name
  }

  get status(): ServedPipeline['status'] {
    const state = this.#paused ? 'paused' : 'serving'
    return { export: this.#name, state, pipeline: this.#pipeline, error: null }
  }

  pause(timeoutMs: number): Promise<void> {
    this.calls.push(`pause ${timeoutMs}`)
    this.#paused = true
    return Promise.resolve()
  }

  resume(pipeline: string | undefined, timeoutMs: number): Promise<number> {
    this.calls.push(`resume ${pipeline ?? 'the same'} ${timeoutMs}`)
    this.#paused = false
    this.#pipeline = pipeline ?? this.#pipeline
    return Promise.resolve(1500)
  }

  reopen(pipeline: string, timeoutMs: number): Promise<number> {
    this.calls.push(`reopen ${pipeline} ${timeoutMs}`)
    return pipeline === 'aio:missing'
      ? Promise.reject(new Fault('NOT_FOUND', 'no such file'))
      : this.resume(pipeline, timeoutMs)
  }
}

function contextWith(...pipelines: ServedPipeline[]): ControlContext {
  return { ...contextOf(), pipelines: () => pipelines }
}

async function run(context: ControlContext, name: string, args: object = {}): Promise<unknown> {
  return await COMMANDS.get(name)?.execute(context, args as Record<string, unknown>)
}

void t.test('an export is paused, and goes on with the pipeline that it is given', async (t) => {
  const disk = new FakePipeline('disk')
  const context = contextWith(disk)
  t.match(await run(context, 'export-pause'), { export: 'disk', state: 'paused' })
  const resumed = await run(context, 'export-resume', { pipeline: 'ram:2M', timeoutMs: 10 })
  t.same(resumed, {
    ...{ export: 'disk', state: 'serving', pipeline: 'ram:2M', error: null },
    pauseUs: 1500,
  })
  await run(context, 'export-pause', { timeoutMs: 77 })
  await run(context, 'export-resume', { export: 'disk' })
  t.same(disk.calls, ['pause 25000', 'resume ram:2M 10', 'pause 77', 'resume the same 25000'])
})

void t.test('an exchange at once says how long clients waited, or why it failed', async (t) => {
  const disk = new FakePipeline('disk')
  const context = contextWith(disk)
  t.match(await run(context, 'export-reopen', { pipeline: 'ram:4M' }), { pauseUs: 1500 })
  await t.rejects(run(context, 'export-reopen', { pipeline: 'aio:missing' }), /no such file/)
  await t.rejects(run(context, 'export-reopen'), /pipeline/)
})

void t.test('the export may be left out exactly where there is only one', async (t) => {
  const [one, two] = [new FakePipeline('one'), new FakePipeline('two')]
  for (const name of ['export-pause', 'export-resume'])
    await t.rejects(run(contextWith(one, two), name), /several exports.*one, two/)
  await run(contextWith(one, two), 'export-pause', { export: 'two' })
  t.same([one.calls, two.calls], [[], ['pause 25000']])
  await t.rejects(run(contextWith(one), 'export-pause', { export: 'x' }), /"x"|'x'/)
  await t.rejects(run(contextWith(), 'export-pause'), /no export/)
})
