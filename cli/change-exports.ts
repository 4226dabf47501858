/** The subcommands that change what a running server serves. */

import { parseSize } from '../core/units.ts'
import { asking, COMMON } from './ask-server.ts'
import { usageError, type Given, type Subcommand } from './command-line.ts'
import { parseExport } from './export-settings.ts'

export const add: Subcommand = {
  name: 'add',
  summary: 'have a running server serve one more disk',
  positional: 'NAME=PIPELINE',
  options: {
    ...COMMON,
    'read-only': { meaning: 'let no client write to it' },
    description: { value: 'TEXT', meaning: 'what clients that list exports are shown' },
    allow: { value: 'CLIENT', repeats: true, meaning: 'keep it for this client, as serve --allow' },
  },
  notes: 'The configuration file of the server is left alone: write the export there as well.',
  run: (given, terminal) => {
    const settings = parseExport(needed(add, given.positional))
    if (settings === undefined)
      throw usageError(add, `"${given.positional ?? ''}" is not NAME=PIPELINE`)
    const description = given.value('description')
    return asking(given, terminal, async (server) => {
      const reply = await server.execute('export-add', {
        ...settings,
        ...(given.has('read-only') ? { readOnly: true } : {}),
        ...(description === undefined ? {} : { description }),
        ...(given.has('allow') ? { allow: given.values('allow') } : {}),
      })
      terminal.print(
        given.has('json') ? JSON.stringify(reply) : `${settings.name} is served from now on`,
      )
    })
  },
}

export const remove: Subcommand = {
  name: 'remove',
  summary: 'have a running server serve a disk no longer',
  positional: 'EXPORT',
  options: { ...COMMON, force: { meaning: 'also while clients use it: they are ended' } },
  notes: 'The configuration file of the server is left alone: take the export out there as well.',
  run: (given, terminal) => {
    const name = needed(remove, given.positional)
    return asking(given, terminal, async (server) => {
      const force = given.has('force') ? { force: true } : {}
      const reply = await server.execute('export-remove', { name, ...force })
      terminal.print(given.has('json') ? JSON.stringify(reply) : `${name} is closed`)
    })
  },
}

export const resize: Subcommand = {
  name: 'resize',
  summary: 'change the size of a disk that a running server serves',
  positional: 'EXPORT SIZE',
  options: COMMON,
  notes: `SIZE is in bytes, or such as 20G. Clients that connect from then on see it. A disk becomes smaller only while no
client uses it, and a replicated one never does: grow that on the secondary first, then on the primary.`,
  run: (given, terminal) => {
    const device = needed(resize, given.positional)
    const size = sizeOf(given)
    return asking(given, terminal, async (server) => {
      const reply = await server.execute('block_resize', { device, size })
      terminal.print(given.has('json') ? JSON.stringify(reply) : `${device} has ${size} bytes`)
    })
  },
}

/** @throws UsageError where the argument is missing */
function needed(command: Subcommand, text: string | undefined): string {
  if (text !== undefined) return text
  throw usageError(command, `${command.positional ?? ''} is missing`)
}

/** @throws UsageError when it is no size */
function sizeOf(given: Given): number {
  const text = needed(resize, given.second)
  try {
    return parseSize(text)
  } catch (error) {
    throw usageError(resize, `SIZE: ${error instanceof Error ? error.message : text}`)
  }
}
