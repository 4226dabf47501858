/** The commands that pause an export and exchange its pipeline (drivers/movable). */

import { Fault } from '../core/fault.ts'
import type { PipelineStatus } from '../drivers/movable/export-pipeline.ts'
import { LONGEST_MS, quote } from './arguments.ts'
import { define, type Command, type ServedPipeline } from './command.ts'

/** Less than what guests' disk drivers usually wait for a request, in milliseconds. */
const USUAL_MS = 25_000

const EXPORT = {
  type: 'string',
  optional: true,
  meaning: 'the export; may be left out where there is only one',
} as const

const TIMEOUT = { type: 'integer', min: 1, max: LONGEST_MS, optional: true } as const

/** What a command says that lets clients go on. */
export interface ResumedReply extends PipelineStatus {
  /** Microseconds for which requests waited. */
  readonly pauseUs: number
}

export const PIPELINE_COMMANDS: readonly Command[] = [
  define({
    name: 'export-pause',
    description: 'closes the images of an export; its clients stay connected, and wait',
    arguments: {
      export: EXPORT,
      timeoutMs: {
        ...TIMEOUT,
        meaning: `the pause ends by itself after so many milliseconds (${USUAL_MS})`,
      },
    },
    run: async (context, args): Promise<PipelineStatus> => {
      const found = onePipeline(context.pipelines(), args.export)
      await found.pause(args.timeoutMs ?? USUAL_MS)
      return found.status
    },
  }),
  define({
    name: 'export-resume',
    description: 'ends a pause; with a pipeline, that one is served from now on',
    arguments: {
      export: EXPORT,
      pipeline: { type: 'string', optional: true, meaning: 'the pipeline from now on' },
      timeoutMs: {
        ...TIMEOUT,
        meaning: `opening may take so many milliseconds, and going back as many (${USUAL_MS})`,
      },
    },
    run: async (context, args): Promise<ResumedReply> => {
      const found = onePipeline(context.pipelines(), args.export)
      const pauseUs = await found.resume(args.pipeline, args.timeoutMs ?? USUAL_MS)
      return { ...found.status, pauseUs }
    },
  }),
  define({
    name: 'export-reopen',
    description:
      'exchanges the pipeline of an export under its clients, in as short a pause as can be',
    arguments: {
      export: EXPORT,
      pipeline: { type: 'string', meaning: 'the pipeline from now on' },
      timeoutMs: {
        ...TIMEOUT,
        meaning: `closing may take so many milliseconds, opening and going back as many (${USUAL_MS})`,
      },
    },
    run: async (context, args): Promise<ResumedReply> => {
      const found = onePipeline(context.pipelines(), args.export)
      const pauseUs = await found.reopen(args.pipeline, args.timeoutMs ?? USUAL_MS)
      return { ...found.status, pauseUs }
    },
  }),
]

/** @throws Fault NOT_FOUND or INVALID, naming the exports there are. */
function onePipeline(all: readonly ServedPipeline[], name: string | undefined): ServedPipeline {
  const names = all.map(({ status }) => status.export).join(', ')
  const found = name === undefined ? all[0] : all.find(({ status }) => status.export === name)
  if (found === undefined) {
    const what =
      name === undefined ? 'this server has no export' : `no export is named ${quote(name)}`
    throw new Fault('NOT_FOUND', what, { remedy: names === '' ? 'add one' : `there is: ${names}` })
  }
  if (name === undefined && all.length > 1)
    throw new Fault('INVALID', 'there are several exports', { remedy: `name one of: ${names}` })
  return found
}
