/** The image that a command works on, `DRIVER:PATH`, and the options that all of them share. */

import { Fault } from '../../core/fault.ts'
import { parentFolders } from '../../drivers/backing-chain.ts'
import type { ImageFormat } from '../../drivers/image-format.ts'
import { IMAGE_FORMATS, imageFormat } from '../../drivers/image-formats.ts'
import { parseStages } from '../../drivers/pipeline.ts'
import { UsageError, type Given, type OptionSpec } from '../command-line.ts'

export interface ImageTarget {
  readonly format: ImageFormat
  readonly path: string
}

export const PARENTS_OPTION: OptionSpec = {
  value: 'DIR[:DIR]',
  meaning: 'folders in which parents may lie, besides the folder of the image',
}

export const JSON_OPTION: OptionSpec = { meaning: 'print JSON' }

/** @throws UsageError where the text names no image of a known format */
export function imageTarget(text: string | undefined): ImageTarget {
  if (text === undefined) throw new UsageError(`no image is given: write ${EXAMPLE}`)
  let stages
  try {
    stages = parseStages(text)
  } catch (error) {
    if (error instanceof Fault) throw new UsageError(error.message)
    throw error
  }
  const [stage, second] = stages
  if (stage === undefined || second !== undefined || stage.settings.size > 0)
    throw new UsageError(`"${text}" is no single image: write ${EXAMPLE}`)
  return { format: formatNamed(stage.driver), path: stage.target }
}

/** @throws UsageError */
export function formatNamed(name: string): ImageFormat {
  const format = imageFormat(name)
  if (format !== undefined) return format
  const known = IMAGE_FORMATS.map((each) => each.name).join(', ')
  throw new UsageError(`no image format is called "${name}": there are ${known}`)
}

export function parentsOf(given: Given): readonly string[] {
  return parentFolders(given.value('parents'))
}

const EXAMPLE = 'DRIVER:PATH, such as vhd:/srv/vm/disk.vhd'
