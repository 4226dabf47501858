/**
 * Opens the device that a pipeline describes.
 *
 * Invariants:
 *  - Exactly one guard is on top, whatever the pipeline; closing it closes every stage, top-down.
 *  - What is below the layers that stay is movable: it can be exchanged while the export is served (movable/).
 */

import type { BlockDevice } from '../core/block-device.ts'
import { NODE_TIMERS } from '../replication/node-timers.ts'
import type { Driver, OpenContext } from './driver.ts'
import { Guard } from './guard.ts'
import type { ExportEventSink } from './movable/export-event.ts'
import { ExportPipeline } from './movable/export-pipeline.ts'
import { openStages } from './open-stages.ts'

export interface OpenPipeline {
  readonly device: BlockDevice
  /** What is below the device, to pause and exchange it. */
  readonly pipeline: ExportPipeline
}

/** @throws Fault when the text is wrong or a stage cannot be opened; then nothing stays open. */
export async function openPipeline(
  text: string,
  drivers: readonly Driver[],
  context: OpenContext,
  onEvent: ExportEventSink = () => undefined,
): Promise<OpenPipeline> {
  const pipeline = await ExportPipeline.open(
    text,
    { drivers, context },
    {
      timers: NODE_TIMERS,
      nowMs: () => performance.now(),
      onEvent,
    },
  )
  const { staying, movable } = pipeline
  const device = await openStages(staying, movable, { drivers, context })
  return { device: new Guard(device, context.readOnly), pipeline }
}
