/** `colotap image info`, `map` and `check`: what an image is, what is in it, and whether it is sound. */

import { Fault } from '../../core/fault.ts'
import type { Extent } from '../../core/block-device.ts'
import { SILENT } from '../../core/logger.ts'
import { formatSize } from '../../core/units.ts'
import { MOST_LAYERS } from '../../drivers/backing-chain.ts'
import { joined } from '../../drivers/extents.ts'
import type { ImageDescription, Repair } from '../../drivers/image-format.ts'
import { imageFormat } from '../../drivers/image-formats.ts'
import { columns, usageError, type Subcommand } from '../command-line.ts'
import { progressOn } from '../progress.ts'
import { imageTarget, JSON_OPTION, PARENTS_OPTION, parentsOf, type ImageTarget } from './target.ts'

export const info: Subcommand = {
  name: 'image info',
  summary: 'show what an image and its parents are',
  positional: 'DRIVER:PATH',
  options: { json: JSON_OPTION, parents: PARENTS_OPTION },
  async run(given, terminal) {
    const layers = await chainOf(imageTarget(given.positional), parentsOf(given))
    terminal.print(
      given.has('json') ? JSON.stringify({ chain: layers }) : layers.map(describe).join('\n\n'),
    )
  },
}

export const map: Subcommand = {
  name: 'image map',
  summary: 'show which parts of a disk have data',
  positional: 'DRIVER:PATH',
  options: { json: JSON_OPTION, parents: PARENTS_OPTION },
  async run(given, terminal) {
    const { format, path } = imageTarget(given.positional)
    const use = { readOnly: true, logger: SILENT, parents: parentsOf(given) }
    const image = await format.open(path, use)
    const extents: Extent[] = []
    try {
      const { size } = image.geometry
      const progress = progressOn(terminal, 'mapping')
      for (let at = 0; at < size;) {
        const found = image.can.status
          ? await image.status(at, size - at)
          : [{ at, length: size - at, kind: 'data' as const }]
        extents.push(...found)
        const last = found.at(-1)
        if (last === undefined) break
        at = last.at + last.length
        progress(at, size)
      }
    } finally {
      await image.close()
    }
    const all = joined(extents)
    terminal.print(
      given.has('json')
        ? JSON.stringify(all.map(({ at, length, kind }) => ({ start: at, length, kind })))
        : all.map(({ at, length, kind }) => `${at} ${length} ${kind}`).join('\n'),
    )
  },
}

export const check: Subcommand = {
  name: 'image check',
  summary: 'look for faults in the structures of an image',
  positional: 'DRIVER:PATH',
  options: {
    repair: { value: 'leaks|all', meaning: 'mend what only wastes space, or everything' },
    json: JSON_OPTION,
  },
  notes: 'Exit code 1 where faults are left. What only wastes space is no fault.',
  async run(given, terminal) {
    const { format, path } = imageTarget(given.positional)
    const report = await format.check(
      path,
      repairOf(given.value('repair')),
      progressOn(terminal, 'checking'),
    )
    const { errors, leaks, repaired } = report
    if (given.has('json')) terminal.print(JSON.stringify(report))
    else {
      for (const each of errors) terminal.print(`error: ${each}`)
      for (const each of leaks) terminal.print(`waste: ${each}`)
      for (const each of repaired) terminal.print(`mended: ${each}`)
      if (errors.length + leaks.length === 0) terminal.print('no faults')
    }
    if (errors.length > 0) {
      throw new Fault(
        'INVALID',
        `the image has ${errors.length === 1 ? 'a fault' : `${errors.length} faults`}`,
        {
          where: path,
          remedy: 'copy what can be read, or repair it with --repair all',
        },
      )
    }
  },
}

function repairOf(text: string | undefined): Repair {
  if (text === undefined) return 'none'
  if (text === 'leaks' || text === 'all') return text
  throw usageError(check, `--repair ${text} is not known: give leaks or all`)
}

/** The image and its parents, as far as they can be found. */
async function chainOf(
  { format, path }: ImageTarget,
  parents: readonly string[],
): Promise<ImageDescription[]> {
  const layers: ImageDescription[] = []
  let next: ImageTarget | undefined = { format, path }
  while (next !== undefined && layers.length < MOST_LAYERS) {
    const layer: ImageDescription = await next.format.describe(next.path, parents)
    layers.push(layer)
    const { backing } = layer
    const below = backing?.format === undefined ? undefined : imageFormat(backing.format)
    next =
      below === undefined || backing?.path === undefined
        ? undefined
        : { format: below, path: backing.path }
  }
  return layers
}

function describe(layer: ImageDescription): string {
  const { path, format, size, fileSize, allocated, backing, details } = layer
  const rows: [string, string][] = [
    ['image', path],
    ['format', format],
    ['size', `${formatSize(size)} (${size} bytes)`],
    ['file', `${formatSize(fileSize)}, of which ${formatSize(allocated)} are allocated`],
  ]
  if (backing !== undefined) {
    const place = backing.path === undefined ? 'not found' : backing.path
    rows.push(['parent', `${backing.named} (${backing.format ?? 'format unknown'}; ${place})`])
  }
  for (const [name, value] of Object.entries(details)) rows.push([name, String(value)])
  return columns(rows)
}
