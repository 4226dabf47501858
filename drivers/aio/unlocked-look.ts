/**
 * A look at an image that somebody else may be writing at the same time.
 *
 * Invariant: nobody is kept from the image by it, and nothing is written. What it shows may be old; a look that catches
 * structures half changed is taken again.
 */

import { Fault } from '../../core/fault.ts'
import { SILENT } from '../../core/logger.ts'
import type { ImageFile } from './aio-device.ts'
import { openImageFile } from './aio.ts'

/** Structures that are read wrongly so often in a row are wrong. */
const LOOKS = 3

/** @throws Fault of `look` or of opening the file */
export async function unlockedLook<T>(
  path: string,
  look: (file: ImageFile) => Promise<T>,
): Promise<T> {
  for (let count = 1; ; count += 1) {
    const options = { readOnly: true, logger: SILENT, threads: 1, locked: false }
    const file = await openImageFile(path, options)
    try {
      return await look(file)
    } catch (error) {
      if (count === LOOKS || !(error instanceof Fault)) throw error
    } finally {
      await file.close()
    }
  }
}
