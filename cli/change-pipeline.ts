/** The subcommands that pause an export and exchange its pipeline: each is one command of the control protocol. */

import type { ResumedReply } from '../control/pipeline-commands.ts'
import type { PipelineStatus } from '../drivers/movable/export-pipeline.ts'
import { asking, COMMON, timeoutOf } from './ask-server.ts'
import { usageError, type Given, type OptionSpec, type Subcommand } from './command-line.ts'
import { formatTime } from './status-text.ts'

const PIPELINE: OptionSpec = {
  value: 'PIPELINE',
  meaning: 'what is served from now on, in full; layers that replicate stay as they are',
}

const RESTART =
  'The next start of the server reads its own configuration again: change the pipeline there as well.'

function exportOf({ positional }: Given): { readonly export?: string } {
  return positional === undefined ? {} : { export: positional }
}

export const pause: Subcommand = {
  name: 'pause',
  summary: 'close the images of an export, so that other tools can work on them; its clients wait',
  positional: 'EXPORT',
  options: {
    ...COMMON,
    'timeout-ms': { value: 'MS', meaning: 'end the pause by itself after so long (25000)' },
  },
  run: (given, terminal) => {
    const args = { ...exportOf(given), ...timeoutOf(pause, given) }
    return asking(given, terminal, async (server) => {
      const reply = (await server.execute('export-pause', args)) as PipelineStatus
      const text = `${reply.export} is paused: its images are closed, its clients wait`
      terminal.print(given.has('json') ? JSON.stringify(reply) : text)
    })
  },
}

export const resume: Subcommand = {
  name: 'resume',
  summary: 'end the pause of an export',
  positional: 'EXPORT',
  options: {
    ...COMMON,
    pipeline: PIPELINE,
    'timeout-ms': { value: 'MS', meaning: 'opening may take so long (25000)' },
  },
  notes: RESTART,
  run: (given, terminal) => {
    const pipeline = given.value('pipeline')
    const chosen = pipeline === undefined ? {} : { pipeline }
    const args = { ...exportOf(given), ...chosen, ...timeoutOf(resume, given) }
    return asking(given, terminal, async (server) => {
      const reply = (await server.execute('export-resume', args)) as ResumedReply
      terminal.print(given.has('json') ? JSON.stringify(reply) : resumedText(reply))
    })
  },
}

export const reopen: Subcommand = {
  name: 'reopen',
  summary: 'exchange the pipeline of an export under its clients',
  positional: 'EXPORT',
  options: {
    ...COMMON,
    pipeline: PIPELINE,
    'timeout-ms': { value: 'MS', meaning: 'each step may take so long (25000)' },
  },
  notes: RESTART,
  run: (given, terminal) => {
    const pipeline = given.value('pipeline')
    if (pipeline === undefined)
      throw usageError(reopen, 'no pipeline is given: --pipeline PIPELINE')
    const args = { ...exportOf(given), pipeline, ...timeoutOf(reopen, given) }
    return asking(given, terminal, async (server) => {
      const reply = (await server.execute('export-reopen', args)) as ResumedReply
      terminal.print(given.has('json') ? JSON.stringify(reply) : resumedText(reply))
    })
  },
}

function resumedText({ export: name, pipeline, pauseUs }: ResumedReply): string {
  return `${name} is served as ${pipeline}; its clients waited for ${formatTime(pauseUs)}`
}
