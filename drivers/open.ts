/**
 * Opens the device that a pipeline describes.
 *
 * Invariants:
 *  - Stages open bottom-up. When one fails, what was opened below it is closed before the failure is reported.
 *  - Exactly one guard is on top, whatever the pipeline; closing it closes every stage, top-down.
 */

import type { BlockDevice } from '../core/block-device.ts'
import { assert } from '../core/assert.ts'
import type { Driver, OpenContext, Stage } from './driver.ts'
import { Guard } from './guard.ts'
import { parsePipeline } from './pipeline.ts'

/** @throws Fault when the text is wrong or a stage cannot be opened; then nothing stays open. */
export async function openPipeline(
  text: string,
  drivers: readonly Driver[],
  context: OpenContext,
): Promise<BlockDevice> {
  const stages = parsePipeline(text, drivers)
  let device: BlockDevice | undefined
  for (const stage of stages.toReversed()) device = await openStage(stage, device, drivers, context)
  assert(device !== undefined, 'a pipeline has a stage')
  return new Guard(device, context.readOnly)
}

async function openStage(
  stage: Stage,
  below: BlockDevice | undefined,
  drivers: readonly Driver[],
  context: OpenContext,
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
