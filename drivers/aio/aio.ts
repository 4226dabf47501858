/** The aio driver: a raw image in a file or on a block device, `aio:PATH`. */

import { Fault } from '../../core/fault.ts'
import type { Logger } from '../../core/logger.ts'
import { booleanSetting, choiceSetting, integerSetting, type Driver } from '../driver.ts'
import { AioDevice, type ImageFile } from './aio-device.ts'
import { openImage } from './image-file.ts'
import { loadNative } from './native.ts'

export interface ImageFileOptions {
  readonly readOnly: boolean
  readonly logger: Logger
  /** Bypass the page cache. */
  readonly direct?: boolean
  /** `ignore` keeps the space of trimmed and zeroed ranges. */
  readonly discard?: 'unmap' | 'ignore'
  /** Most I/O threads, started as they are needed. */
  readonly threads?: number
  /** false for a mere look, beside whoever has the image. */
  readonly locked?: boolean
  /** false does without native calls, as on machines that have none. */
  readonly native?: boolean
}

const MOST_THREADS = 16
const USUAL_THREADS = 4

/** Opens and locks a raw image; also for drivers whose images are files with a structure of their own. */
export async function openImageFile(path: string, options: ImageFileOptions): Promise<ImageFile> {
  if (path.includes('\0')) {
    throw new Fault('INVALID', 'the path of an image contains a zero byte', { where: path })
  }
  const { readOnly, logger, direct = false, discard = 'unmap', threads = USUAL_THREADS } = options
  const { locked = true } = options
  const native = options.native === false ? undefined : loadNative()
  const image = await openImage({ path, readOnly, direct, locked, native, logger })
  return AioDevice.over(image, { path, native, logger, unmap: discard === 'unmap', threads })
}

export const aio: Driver = {
  name: 'aio',
  kind: 'backend',
  target: 'path of a file or block device',
  keys: {
    direct: { meaning: 'bypass the page cache (O_DIRECT)', values: 'on|off' },
    discard: { meaning: 'give trimmed and zeroed space back, or keep it', values: 'unmap|ignore' },
    threads: {
      meaning: 'most I/O threads of this disk',
      values: `1-${MOST_THREADS}, ${USUAL_THREADS} unless given`,
    },
  },
  open: async (stage, _below, context) =>
    openImageFile(stage.target, {
      readOnly: context.readOnly,
      logger: context.logger,
      direct: booleanSetting(stage, 'direct', false),
      discard: choiceSetting(stage, 'discard', ['unmap', 'ignore'], 'unmap'),
      threads: integerSetting(stage, 'threads', { least: 1, most: MOST_THREADS }, USUAL_THREADS),
    }),
}
