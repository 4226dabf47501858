/**
 * The pipeline of an export while it is served: which part of it stays, and which can be exchanged.
 *
 *     log:…|colo:… │ valve:…|qcow:…         what is right of the line is movable: everything below the lowest layer that
 *        stays     │     movable            stays, or the whole pipeline where there is none
 *
 * Invariant: the stages that stay are the same in every pipeline that an export is given. A replication layer knows what
 * both sides have; below it there may be another image, of the same content, and it goes on.
 */

import { isDeepStrictEqual } from 'node:util'

import type { BlockDevice } from '../../core/block-device.ts'
import { assert } from '../../core/assert.ts'
import { Fault } from '../../core/fault.ts'
import type { Driver, Stage } from '../driver.ts'
import { openStages, type Opening } from '../open-stages.ts'
import { formatPipeline, parsePipeline } from '../pipeline.ts'
import { foresee } from './foresight.ts'
import { Mover, type MoverOptions, type MoverStatus, type Source } from './mover.ts'
import type { MovableDevice } from './movable-device.ts'

type Surroundings = Pick<MoverOptions, 'timers' | 'nowMs' | 'onEvent'>

/** How an export is after a command. */
export interface PipelineStatus extends MoverStatus {
  readonly export: string
}

export class ExportPipeline {
  readonly staying: readonly Stage[]
  readonly #opening: Opening
  readonly #mover: Mover

  private constructor(staying: readonly Stage[], opening: Opening, mover: Mover) {
    this.staying = staying
    this.#opening = opening
    this.#mover = mover
  }

  /** Opens the movable part. @throws Fault, with nothing left open */
  static async open(
    text: string,
    opening: Opening,
    surroundings: Surroundings,
  ): Promise<ExportPipeline> {
    const { staying, source } = partsOf(text, opening)
    const { exportName, logger } = opening.context
    const mover = new Mover(source, await source.open(), {
      ...{ exportName, logger, ...surroundings },
      sizeFixed: staying.length > 0,
    })
    return new ExportPipeline(staying, opening, mover)
  }

  /** The device that the stages above stand on. */
  get movable(): MovableDevice {
    return this.#mover.device
  }

  get status(): PipelineStatus {
    return { export: this.#opening.context.exportName, ...this.#mover.status }
  }

  /** As Mover.pause() */
  pause(timeoutMs: number): Promise<void> {
    return this.#mover.pause(timeoutMs)
  }

  /** As Mover.resume(). @param text the pipeline from now on; undefined for the one before */
  async resume(text: string | undefined, timeoutMs: number): Promise<number> {
    return this.#mover.resume(text === undefined ? undefined : this.#sourceOf(text), timeoutMs)
  }

  /** As Mover.reopen() */
  async reopen(text: string, timeoutMs: number): Promise<number> {
    return this.#mover.reopen(this.#sourceOf(text), timeoutMs)
  }

  #sourceOf(text: string): Source {
    const { staying, source } = partsOf(text, this.#opening)
    if (isDeepStrictEqual(staying, this.staying)) return source
    const here = formatPipeline(this.staying)
    throw new Fault('NOT_PERMITTED', 'a replication layer cannot be changed while it is served', {
      where: text,
      remedy:
        here === ''
          ? 'leave it out, or stop the server and configure it'
          : `begin the pipeline with ${here}| and change only what is below`,
    })
  }
}

function partsOf(text: string, opening: Opening): { staying: Stage[]; source: Source } {
  const stages = parsePipeline(text, opening.drivers)
  const lowest = stages.findLastIndex(({ driver }) => driverOf(driver, opening)?.stays === true)
  const movable = stages.slice(lowest + 1)
  return {
    staying: stages.slice(0, lowest + 1),
    source: {
      pipeline: text,
      open: (): Promise<BlockDevice> => openStages(movable, undefined, opening),
      foresee: () => {
        const backend = movable.at(-1)
        assert(backend !== undefined, 'a pipeline ends with a backend')
        return foresee(backend, opening)
      },
    },
  }
}

function driverOf(name: string, { drivers }: Opening): Driver | undefined {
  return drivers.find((driver) => driver.name === name)
}
