/**
 * Opens stages of a pipeline, one on top of the other.
 *
 * Invariant: stages open bottom-up. When one fails, what was opened below it is closed before the failure is reported.
 */

import { assert } from '../core/assert.ts'
import type { BlockDevice } from '../core/block-device.ts'
import type { Driver, OpenContext, Stage } from './driver.ts'

export interface Opening {
  readonly drivers: readonly Driver[]
  readonly context: OpenContext
}

/**
 * @param below the device under the last of the stages, where that is no backend
 * @throws Fault when a stage cannot be opened; then nothing stays open, not even `below`
 */
export async function openStages(
  stages: readonly Stage[],
  below: BlockDevice | undefined,
  opening: Opening,
): Promise<BlockDevice> {
  let device = below
  for (const stage of stages.toReversed()) device = await openStage(stage, device, opening)
  assert(device !== undefined, 'a pipeline has a stage')
  return device
}

async function openStage(
  stage: Stage,
  below: BlockDevice | undefined,
  { drivers, context }: Opening,
): Promise<BlockDevice> {
  const driver = drivers.find(({ name }) => name === stage.driver)
  assert(driver !== undefined, 'the parser lets only known drivers through')
  try {
    return await driver.open(stage, below, context)
  } catch (error) {
    await below?.close().catch((second: unknown) => {
      context.logger.error({ err: second }, 'closing after a failed open failed as well')
    })
    throw error
  }
}
