/**
 * The exports of a server: what clients can attach to, opened at the start and changed while it runs.
 *
 * Invariants:
 *  - Changes come one after the other. One that fails leaves the exports as they were.
 *  - An export is offered from when its disk is open, and its replication under way, until just before it is closed.
 *  - A disk does not become smaller while a client uses it.
 */

import type { ExportSummary, NewExport } from '../control/command.ts'
import { Fault } from '../core/fault.ts'
import type { Logger } from '../core/logger.ts'
import type { Driver, OpenContext } from '../drivers/driver.ts'
import type { ExportEventSink } from '../drivers/movable/export-event.ts'
import type { ExportPipeline } from '../drivers/movable/export-pipeline.ts'
import { openPipeline } from '../drivers/open.ts'
import type { ReplicationRegistry } from '../drivers/replication-registry.ts'
import type { Export, ExportTable } from '../nbd/export.ts'
import type { ListenPlace } from '../nbd/listen-place.ts'
import type { NbdServer } from '../nbd/server.ts'
import { exportSettings, type ExportSettings } from './export-settings.ts'
import { refuseUnreachable } from './listen-settings.ts'

interface ServedExport extends Export {
  readonly pipeline: ExportPipeline
}

interface ExportSetOptions {
  readonly drivers: readonly Driver[]
  readonly logger: Logger
  readonly registry: ReplicationRegistry
  readonly insecure: boolean
  readonly readOnly: boolean
  readonly listen: readonly ListenPlace[]
  readonly onEvent: ExportEventSink
}

export class ExportSet implements ExportTable {
  readonly #options: ExportSetOptions
  readonly #exports = new Map<string, ServedExport>()
  /** The change under way, and those that wait for it; never rejects. */
  #changing: Promise<unknown> = Promise.resolve()
  #closed = false

  constructor(options: ExportSetOptions) {
    this.#options = options
  }

  /** The empty name is the protocol's default export: the only one, where there is only one. */
  find(name: string): Export | undefined {
    const [only, second] = this.#exports.values()
    return name === '' && second === undefined ? only : this.#exports.get(name)
  }

  list(): readonly ServedExport[] {
    return [...this.#exports.values()]
  }

  summaries(clients: NbdServer): readonly ExportSummary[] {
    return this.list().map(({ name, device, pipeline: { status } }) => ({
      name,
      size: device.geometry.size,
      readOnly: device.geometry.readOnly,
      connections: clientsOf(clients, name),
      ...{ state: status.state, pipeline: status.pipeline, error: status.error },
    }))
  }

  /** Opens the exports that a server begins with, and starts their replication. @throws Fault; then close() what was opened */
  async begin(exports: readonly ExportSettings[]): Promise<void> {
    for (const each of exports) this.#exports.set(each.name, await this.#open(each))
    await this.#options.registry.start()
  }

  /** @throws Fault */
  add(added: NewExport): Promise<void> {
    return this.#change(async () => {
      const { registry, readOnly, listen } = this.#options
      const settings = exportSettings(added, readOnly)
      const { name, clients } = settings
      if (clients !== undefined) refuseUnreachable(name, clients, listen)
      if (this.#exports.has(name))
        throw new Fault('IN_USE', `an export is named "${name}" already`, {
          remedy: 'choose another name, or remove that one first',
        })
      const opened = await this.#open(settings)
      try {
        await registry.start()
      } catch (error) {
        await this.#discard(opened)
        throw error
      }
      this.#exports.set(name, opened)
      this.#options.logger.info({ export: name }, 'export added')
    })
  }

  /** @throws Fault IN_USE when clients use it, unless they are to be ended; another when its disk does not close well */
  remove(name: string, clients: NbdServer, force: boolean): Promise<void> {
    return this.#change(async () => {
      const { registry, logger } = this.#options
      const exported = this.#named(name)
      // What may be refused comes first: then the disk and its clients are as they were.
      await registry.refuseRemoval(name)
      if (!force) refuseUsed(clients, name, 'be removed', 'detach them first, or use force')
      this.#exports.delete(name)
      try {
        exported.device.stopWaiting?.()
        await clients.dismiss(exported)
        await registry.dismiss(name)
      } catch (error) {
        // It is as it was, but for its clients.
        this.#exports.set(name, exported)
        throw error
      }
      try {
        await exported.device.close()
      } finally {
        await registry.forget()
      }
      logger.info({ export: name }, 'export removed')
    })
  }

  /** @throws Fault, with the disk as it was */
  resize(name: string, size: number, clients: NbdServer): Promise<void> {
    return this.#change(async () => {
      const { device } = this.#named(name)
      const before = device.geometry.size
      if (size === before) return
      if (size < before)
        refuseUsed(clients, name, 'become smaller', 'detach them first: they rely on what they saw')
      await device.resize(size)
      this.#options.logger.info({ export: name, before, size }, 'export resized')
    })
  }

  /** No change begins any more. Resolves when the one that is under way has ended. */
  async stop(): Promise<void> {
    this.#closed = true
    await this.#changing
  }

  /** Has each disk closed by `attempt`, which handles failures. */
  async close(attempt: (what: string, close: () => Promise<void>) => Promise<void>): Promise<void> {
    await Promise.all(
      this.list().map(({ name, device }) => attempt(`export ${name}`, () => device.close())),
    )
  }

  #change(work: () => Promise<void>): Promise<void> {
    const change = this.#changing.then(() => {
      if (!this.#closed) return work()
      throw new Fault('SHUTDOWN', 'the server is being shut down')
    })
    this.#changing = change.catch(() => undefined)
    return change
  }

  async #open({ pipeline, readOnly, ...shown }: ExportSettings): Promise<ServedExport> {
    const { name } = shown
    const { drivers, logger, insecure, registry, onEvent } = this.#options
    const context: OpenContext = {
      exportName: name,
      readOnly,
      logger,
      insecure,
      attachReplica: (stage, mode, below) => registry.attach(stage, mode, name, below),
    }
    const opened = await openPipeline(pipeline, drivers, context, onEvent)
    return { ...shown, ...opened, hold: opened.pipeline.movable }
  }

  /** Closes what was opened in vain. */
  async #discard({ name, device }: Export): Promise<void> {
    const { registry, logger } = this.#options
    try {
      await device.close()
    } catch (error) {
      logger.error({ export: name, error }, 'closing after a failed start failed as well')
    }
    await registry.forget()
  }

  #named(name: string): ServedExport {
    const found = this.#exports.get(name)
    if (found !== undefined) return found
    const names = [...this.#exports.keys()].join(', ')
    throw new Fault('NOT_FOUND', `no export is named "${name}"`, { remedy: `there is: ${names}` })
  }
}

function clientsOf(clients: NbdServer, name: string): number {
  return clients.connections.filter(({ exportName }) => exportName === name).length
}

function refuseUsed(clients: NbdServer, name: string, what: string, remedy: string): void {
  const count = clientsOf(clients, name)
  if (count === 0) return
  const users = count === 1 ? 'a client uses it' : `${count} clients use it`
  throw new Fault('IN_USE', `export "${name}" cannot ${what}: ${users}`, { remedy })
}
