/** `colotap image create` and `colotap image snapshot`: new images, empty or on top of others. */

import { resolve } from 'node:path'

import { Fault } from '../../core/fault.ts'
import { formatSize, parseSize } from '../../core/units.ts'
import type { NewImage } from '../../drivers/image-format.ts'
import { UsageError, usageError, type OptionSpec, type Subcommand } from '../command-line.ts'
import { progressOn } from '../progress.ts'
import { formatNamed, imageTarget, type ImageTarget } from './target.ts'

const CREATION: OptionSpec = {
  letter: 'o',
  value: 'KEY=VALUE[,KEY=VALUE]',
  repeats: true,
  meaning: 'properties of the new image; a comma within a value is written twice',
}

export const create: Subcommand = {
  name: 'image create',
  summary: 'make an empty image',
  positional: 'DRIVER:PATH',
  options: {
    size: {
      value: 'SIZE',
      meaning: 'size of the disk, such as 10G; by default that of the parent',
    },
    option: CREATION,
  },
  notes:
    'Keys for every format: backing (path of the parent, relative to the new image) with backing_format (its driver). ' +
    'An existing file is never overwritten.',
  async run(given, terminal) {
    const target = imageTarget(given.positional)
    const settings = creationSettings(target, given.values('option'))
    const named = settings.get('backing')
    const formatName = settings.get('backing_format')
    settings.delete('backing')
    settings.delete('backing_format')
    if ((named === undefined) !== (formatName === undefined))
      throw usageError(create, 'give backing and backing_format together')
    const backing =
      named === undefined || formatName === undefined
        ? undefined
        : { named, format: formatNamed(formatName).name }
    const size = given.value('size')
    if (size === undefined && backing === undefined)
      throw usageError(create, 'no size is given: --size 10G')
    await make(
      target,
      {
        size: size === undefined ? await parentSize(target, backing) : parseSize(size),
        settings,
        backing,
      },
      progressOn(terminal, 'creating'),
    )
    terminal.print(`created ${target.format.name}:${target.path}`)
  },
}

export const snapshot: Subcommand = {
  name: 'image snapshot',
  summary: 'make a new image on top of one, which must not change any more',
  positional: 'DRIVER:PATH',
  options: {
    to: { value: 'DRIVER:PATH', meaning: 'the new image' },
    option: CREATION,
  },
  async run(given, terminal) {
    const base = imageTarget(given.positional)
    const to = given.value('to')
    if (to === undefined) throw usageError(snapshot, 'no new image is given: --to DRIVER:PATH')
    const target = imageTarget(to)
    const settings = creationSettings(target, given.values('option'))
    if (settings.has('backing') || settings.has('backing_format'))
      throw usageError(snapshot, 'the parent of a snapshot is the image that it is made of')
    const { size } = await base.format.describe(base.path, [])
    const backing = { named: resolve(base.path), format: base.format.name }
    await make(target, { size, settings, backing }, progressOn(terminal, 'creating'))
    terminal.print(
      `created ${target.format.name}:${target.path} (${formatSize(size)}) on top of ${base.path}`,
    )
  },
}

async function make(
  { format, path }: ImageTarget,
  image: NewImage,
  progress: ReturnType<typeof progressOn>,
): Promise<void> {
  await format.create(path, image, progress)
}

async function parentSize(target: ImageTarget, backing: NewImage['backing']): Promise<number> {
  if (backing === undefined) throw new Fault('INVALID', 'there is no parent to take a size from')
  const path = resolve(target.path, '..', backing.named)
  return (await formatNamed(backing.format ?? '').describe(path, [])).size
}

/** `key=value,key=value`, as qemu-img reads it: two commas are one within a value. */
function creationSettings({ format }: ImageTarget, texts: readonly string[]): Map<string, string> {
  const known = [...Object.keys(format.creation), 'backing', 'backing_format']
  const settings = new Map<string, string>()
  for (const pair of texts.flatMap((text) => text.split(/(?<!,)(?:,,)*,(?!,)/))) {
    const equals = pair.indexOf('=')
    const key = equals === -1 ? pair : pair.slice(0, equals)
    if (!known.includes(key))
      throw new UsageError(`${format.name} has no property "${key}": it has ${known.join(', ')}`)
    if (settings.has(key)) throw new UsageError(`the property ${key} is given twice`)
    settings.set(key, equals === -1 ? '' : pair.slice(equals + 1).replaceAll(',,', ','))
  }
  return settings
}
