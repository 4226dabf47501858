/** The commands on exports: what is served, and its changes while the server runs. */

import { Fault } from '../core/fault.ts'
import { quote } from './arguments.ts'
import { define, type Command, type ControlContext, type ExportSummary } from './command.ts'

const NAME = { type: 'string', meaning: 'the name of the export' } as const

export const EXPORT_COMMANDS: readonly Command[] = [
  define({
    name: 'query-block-exports',
    description: 'the exports, with their size, their clients, and the state of their pipelines',
    arguments: {},
    run: (context) => context.exports().map(exportReply),
  }),
  define({
    name: 'export-add',
    description: 'opens a disk and serves it, without a restart',
    arguments: {
      name: NAME,
      pipeline: { type: 'string', meaning: 'its pipeline, as for serve --export' },
      description: { type: 'string', optional: true, meaning: 'shown to clients that list' },
      readOnly: { type: 'boolean', optional: true, meaning: 'let no client write to it' },
      allow: { type: 'strings', optional: true, meaning: 'keep it for these clients' },
    },
    run: async (context, { name, pipeline, description = '', readOnly = false, allow }) => {
      await context.addExport({ name, pipeline, description, readOnly, allow })
      return exportReply(exportOf(context, name))
    },
  }),
  define({
    name: 'export-remove',
    description: 'serves an export no longer: ends its clients, flushes and closes its disk',
    arguments: {
      name: NAME,
      force: { type: 'boolean', optional: true, meaning: 'also while clients use it' },
    },
    run: async (context, { name, force = false }) => {
      await context.removeExport(name, force)
      return {}
    },
  }),
  define({
    name: 'block_resize',
    description: 'changes the size of an export; clients that connect from then on see it',
    arguments: {
      device: { ...NAME, optional: true },
      'node-name': { type: 'string', optional: true, meaning: 'the same, as other clients say it' },
      size: {
        type: 'integer',
        min: 1,
        max: Number.MAX_SAFE_INTEGER,
        meaning: 'the new size in bytes',
      },
    },
    run: async (context, { device, 'node-name': node, size }) => {
      const name = device ?? node
      if (name === undefined || (device !== undefined && node !== undefined))
        throw new Fault('INVALID', 'either device or node-name has to name the export')
      await context.resizeExport(name, size)
      return {}
    },
  }),
]

/** @throws Fault NOT_FOUND */
function exportOf(context: ControlContext, name: string): ExportSummary {
  const found = context.exports().find((each) => each.name === name)
  if (found !== undefined) return found
  throw new Fault('NOT_FOUND', `no export is named ${quote(name)}`)
}

/** QEMU's BlockExportInfo, and colotap's own fields behind it. */
function exportReply(summary: ExportSummary): object {
  const { name, ...own } = summary
  return { id: name, type: 'nbd', 'node-name': name, 'shutting-down': false, ...own }
}
