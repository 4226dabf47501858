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

interface Door {
  readonly name: string
  readonly entry: FlushSocket | FlushFifo
}

export class Blktap2Doors {
  readonly #options: DoorsOptions
  /** By the name of the group. */
  readonly #doors = new Map<string, Door>()

  constructor(options: DoorsOptions) {
    this.#options = options
  }

  /**
   * Opens a door for each of these groups that has none, and closes those of other groups. Makes the folder where only that
   * is missing. @throws Fault; close() undoes what was done
   */
  async open(targets: readonly FlushTarget[]): Promise<void> {
    const { folder, logger } = this.#options
    await this.#close((group) => !targets.some((target) => target.group === group))
    // What is wrong with the folder, if anything, shows when something is made in it.
    await mkdir(folder, { mode: 0o700 }).catch(() => undefined)
    for (const { group, mode, target } of targets) {
      if (this.#doors.has(group)) continue
      const name = `${mode}_${target.replaceAll(/[:/]/g, '_')}`
      for (const [other, door] of this.#doors)
        if (door.name === name) throw twins(other, group, name)
      const Entry = mode === 'colo' ? FlushSocket : FlushFifo
      const entry = new Entry(join(folder, name), () => this.#flush(group), logger)
      this.#doors.set(group, { name, entry })
      await entry.open()
    }
  }

  close(): Promise<void> {
    return this.#close(() => true)
  }

  async #close(concerns: (group: string) => boolean): Promise<void> {
    const closing = [...this.#doors].filter(([group]) => concerns(group))
    for (const [group] of closing) this.#doors.delete(group)
    await Promise.all(closing.map(([, { entry }]) => entry.close()))
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
