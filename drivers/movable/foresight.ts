/**
 * Looks at a backend that is to be opened later, while images that it needs may still be open elsewhere in this process.
 *
 * Invariant: nothing is changed, and nothing stays open.
 */

import { Fault } from '../../core/fault.ts'
import { imageFormat } from '../image-formats.ts'
import { parentFolders } from '../backing-chain.ts'
import type { Stage } from '../driver.ts'
import { openStages, type Opening } from '../open-stages.ts'

/**
 * Bytes of the disk; undefined where that does not show yet.
 * @throws Fault as opening it would
 */
export async function foresee(backend: Stage, opening: Opening): Promise<number | undefined> {
  const context = { ...opening.context, readOnly: true }
  try {
    const device = await openStages([backend], undefined, { ...opening, context })
    const { size } = device.geometry
    await device.close()
    return size
  } catch (error) {
    // Who has the image may be the pipeline whose place this one is going to take.
    if (!(error instanceof Fault) || error.code !== 'IN_USE') throw error
  }
  const parents = parentFolders(backend.settings.get('parents'))
  return (await imageFormat(backend.driver)?.describe(backend.target, parents))?.size
}
