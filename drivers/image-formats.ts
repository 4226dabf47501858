/** Every image format that `colotap image` knows, and the names by which other images and people call them. */

import { rawFormat } from './aio/raw-format.ts'
import type { ImageFormat } from './image-format.ts'
import { qcowFormat } from './qcow/qcow-format.ts'
import { vhdFormat } from './vhd/vhd-format.ts'

export const IMAGE_FORMATS: readonly ImageFormat[] = [rawFormat, vhdFormat, qcowFormat]

/** The format of that name or alias, if there is one. */
export function imageFormat(name: string): ImageFormat | undefined {
  return IMAGE_FORMATS.find((format) => format.name === name || format.aliases.includes(name))
}
