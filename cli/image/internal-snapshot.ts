/** `colotap image internal-snapshot`: states of a disk that are kept within its image. */

import { Fault } from '../../core/fault.ts'
import { formatSize } from '../../core/units.ts'
import type { InternalSnapshot } from '../../drivers/image-format.ts'
import { columns, usageError, type Given, type Subcommand } from '../command-line.ts'
import { progressOn } from '../progress.ts'
import { imageTarget, JSON_OPTION } from './target.ts'

const ACTIONS = ['create', 'apply', 'delete'] as const

const DONE = { create: 'made', apply: 'applied', delete: 'deleted' } as const

export const internalSnapshot: Subcommand = {
  name: 'image internal-snapshot',
  summary: 'list, make, apply or delete states of a disk that are kept within its image',
  positional: 'DRIVER:PATH',
  options: {
    create: { value: 'NAME', meaning: 'keep what the disk is now, under this name' },
    apply: { value: 'NAME', meaning: 'make the disk what it was then; the snapshot stays' },
    delete: { value: 'NAME', meaning: 'forget it, and give its space back' },
    json: JSON_OPTION,
  },
  notes:
    'Lists them where nothing else is asked for. A snapshot is named by its name, or else by its id. For QCOW2 images that ' +
    'nobody uses; "colotap image snapshot" makes a new image on top of one instead.',
  async run(given, terminal) {
    const { format, path } = imageTarget(given.positional)
    const snapshots = format.internalSnapshots
    if (snapshots === undefined) {
      throw new Fault('NOT_SUPPORTED', `${format.name} images have no internal snapshots`, {
        where: path,
        remedy: 'make an overlay: colotap image snapshot',
      })
    }
    const wanted = actionOf(given)
    if (wanted !== undefined) {
      const { action, name } = wanted
      await snapshots[action](path, name, progressOn(terminal, `${action} ${name}`))
      terminal.print(`${DONE[action]} "${name}"`)
      return
    }
    const all = await snapshots.list(path)
    if (given.has('json')) terminal.print(JSON.stringify(all.map(shown)))
    else terminal.print(all.length === 0 ? 'no snapshots' : columns(all.map(row)))
  },
}

function actionOf(given: Given): { action: (typeof ACTIONS)[number]; name: string } | undefined {
  const [wanted, more] = ACTIONS.filter((action) => given.has(action))
  if (more !== undefined)
    throw usageError(internalSnapshot, `--${wanted} and --${more} exclude each other`)
  return wanted === undefined ? undefined : { action: wanted, name: given.value(wanted) ?? '' }
}

function shown({ diskSize, id, name, seconds, vmStateBytes }: InternalSnapshot): object {
  return { id, name, time: timeOf(seconds), diskSize: diskSize ?? null, vmStateBytes }
}

function row({ diskSize, id, name, seconds, vmStateBytes }: InternalSnapshot): [string, string] {
  const size = diskSize === undefined ? 'of unknown size' : formatSize(diskSize)
  const state = vmStateBytes === 0 ? '' : `, with ${formatSize(vmStateBytes)} of a VM's state`
  return [id, `${name} (${timeOf(seconds)}, ${size}${state})`]
}

function timeOf(seconds: number): string {
  return new Date(seconds * 1000).toISOString()
}
