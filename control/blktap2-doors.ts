/**
 * The checkpoint sockets and FIFOs that toolstacks made for blktap2 look for: one for each replication group, in one folder.
 * `colo_NAME` is a socket, `remus_NAME` and `remus_NAME.msg` are FIFOs; NAME is what stands behind `colo:` or `remus:` in the
 * pipeline, with `:` and `/` turned into `_`.
 *
 * Invariant: a door asks for the command `blktap2-flush`, and adds nothing to it.
 */

import { mkdir } from 'node:fs/promises'
import { join } from 'node:path'

import { assert } from '../core/assert.ts'
import { Fault } from '../core/fault.ts'
import type { Logger } from '../core/logger.ts'
import type { GroupMode } from '../replication/group.ts'
import type { ControlContext } from './command.ts'
import { COMMANDS } from './commands.ts'
import { FlushFifo } from './flush-fifo.ts'
import { FlushSocket } from './flush-socket.ts'

/** A replication group and the target that its pipeline has. */
export interface FlushTarget {
  readonly group: string
  readonly mode: GroupMode
  readonly target: string
}

interface DoorsOptions {
  readonly folder: string
  readonly context: ControlContext
  readonly logger: Logger
}

export class Blktap2Doors {
  readonly #options: DoorsOptions
  #doors: (FlushSocket | FlushFifo)[] = []

  constructor(options: DoorsOptions) {
    this.#options = options
  }

  /** Makes the folder where only that is missing. @throws Fault; close() undoes what was done */
  async open(targets: readonly FlushTarget[]): Promise<void> {
    const { folder, logger } = this.#options
    // What is wrong with the folder, if anything, shows when something is made in it.
    await mkdir(folder, { mode: 0o700 }).catch(() => undefined)
    const groups = new Map<string, string>()
    for (const { group, mode, target } of targets) {
      const name = `${mode}_${target.replaceAll(/[:/]/g, '_')}`
      const other = groups.get(name)
      if (other !== undefined) throw twins(other, group, name)
      groups.set(name, group)
      const Door = mode === 'colo' ? FlushSocket : FlushFifo
      const door = new Door(join(folder, name), () => this.#flush(group), logger)
      this.#doors.push(door)
      await door.open()
    }
  }

  async close(): Promise<void> {
    const doors = this.#doors
    this.#doors = []
    await Promise.all(doors.map((door) => door.close()))
  }

  /** Rejects only for a bug of ours, which is to end the process: nobody handles it. */
  async #flush(group: string): Promise<boolean> {
    const { context, logger } = this.#options
    const command = COMMANDS.get('blktap2-flush')
    assert(command !== undefined, 'the table has what its doors ask for')
    try {
      await command.execute(context, { group })
      return true
    } catch (error) {
      if (!(error instanceof Fault)) throw error
      logger.warn({ group, reason: error.message }, 'a flush failed')
      return false
    }
  }
}

function twins(one: string, other: string, name: string): Fault {
  return new Fault('INVALID', `the groups "${one}" and "${other}" have the same address`, {
    where: name,
    remedy: 'give each group an address of its own, or leave out --blktap2-dir',
  })
}
