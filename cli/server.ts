/**
 * The composition root: makes a server of exports, replication groups, NBD listeners and a control socket.
 *
 * Invariants:
 *  - What was opened is closed in an order in which nothing is used after its close: clients, links, disks, control.
 *  - A start that fails closes everything that it opened, and reports why it failed.
 *  - A close that fails in one part still closes the others, and then reports the first failure.
 */

import { Blktap2Doors } from '../control/blktap2-doors.ts'
import type { ControlContext, ExportSummary, NewExport } from '../control/command.ts'
import { EventBus } from '../control/events.ts'
import { QmpServer } from '../control/qmp-server.ts'
import { BufferPool } from '../core/buffer-pool.ts'
import { asFault } from '../core/fault.ts'
import type { Logger } from '../core/logger.ts'
import { MiB } from '../core/units.ts'
import type { Driver } from '../drivers/driver.ts'
import { ReplicationRegistry } from '../drivers/replication-registry.ts'
import type { ListenPlace } from '../nbd/listen-place.ts'
import { NbdServer } from '../nbd/server.ts'
import { ExportSet } from './export-set.ts'
import { refuseExposure } from './listen-settings.ts'
import type { ServeSettings } from './serve-settings.ts'

/** Payloads and replies of all NBD clients together; taken from the system as it is needed. */
const POOL = 512 * MiB

interface ServerOptions {
  readonly settings: Pick<
    ServeSettings,
    | 'exports'
    | 'readOnly'
    | 'listen'
    | 'limits'
    | 'control'
    | 'stateDir'
    | 'blktap2Dir'
    | 'insecure'
  >
  readonly drivers: readonly Driver[]
  readonly logger: Logger
  /** A client asks for the end, by the command `quit`. */
  readonly onQuit: () => void
}

export class Server implements ControlContext {
  readonly #options: ServerOptions
  readonly #events = new EventBus()
  readonly #exports: ExportSet
  readonly #registry: ReplicationRegistry
  readonly #nbd: NbdServer
  readonly #control: QmpServer
  readonly #blktap2: Blktap2Doors | undefined
  #closing: Promise<void> | undefined

  private constructor(options: ServerOptions) {
    const { settings, logger } = options
    this.#options = options
    this.#registry = new ReplicationRegistry({
      logger,
      onEvent: this.#events.publish,
      insecure: settings.insecure,
      stateDir: settings.stateDir,
    })
    this.#exports = new ExportSet({
      ...{ ...settings, ...options },
      registry: this.#registry,
      onEvent: this.#events.publish,
    })
    this.#nbd = new NbdServer({
      exports: this.#exports,
      pool: new BufferPool(POOL),
      logger,
      limits: settings.limits,
    })
    this.#control = new QmpServer({
      path: settings.control,
      context: this,
      events: this.#events,
      logger,
    })
    const folder = settings.blktap2Dir
    if (folder !== undefined) this.#blktap2 = new Blktap2Doors({ folder, context: this, logger })
  }

  /** Resolves when every listener is up. @throws Fault, with nothing left open */
  static async start(options: ServerOptions): Promise<Server> {
    const server = new Server(options)
    try {
      await server.#start()
      return server
    } catch (error) {
      await server.close().catch((second: unknown) => {
        options.logger.error({ error: second }, 'closing after a failed start failed as well')
      })
      throw error
    }
  }

  /** Where NBD is served, with the ports that the system chose. */
  get addresses(): readonly ListenPlace[] {
    return this.#nbd.addresses
  }

  groups(): ReturnType<ControlContext['groups']> {
    return this.#registry.groups
  }

  exports(): readonly ExportSummary[] {
    return this.#exports.summaries(this.#nbd)
  }

  async addExport(added: NewExport): Promise<void> {
    await this.#exports.add(added)
    try {
      await this.#blktap2?.open(this.#registry.targets)
    } catch (error) {
      await this.#exports.remove(added.name, this.#nbd, true)
      throw error
    }
  }

  async removeExport(name: string, force: boolean): Promise<void> {
    try {
      await this.#exports.remove(name, this.#nbd, force)
    } finally {
      await this.#blktap2?.open(this.#registry.targets)
    }
  }

  resizeExport(name: string, size: number): Promise<void> {
    return this.#exports.resize(name, size, this.#nbd)
  }

  pipelines(): ReturnType<ControlContext['pipelines']> {
    return this.#exports.list().map(({ pipeline }) => pipeline)
  }

  changeLogs(): ReturnType<ControlContext['changeLogs']> {
    return this.#exports
      .list()
      .flatMap(({ name, device: { changeLog } }) =>
        changeLog === undefined ? [] : { exportName: name, log: changeLog },
      )
  }

  quit(): void {
    this.#options.onQuit()
  }

  /** Stops accepting, finishes what runs, closes every image. Idempotent. @throws Fault when an image did not close well */
  close(): Promise<void> {
    this.#closing ??= this.#close()
    return this.#closing
  }

  async #start(): Promise<void> {
    const { settings } = this.#options
    await this.#exports.begin(settings.exports)
    for (const place of settings.listen) {
      const bound = await this.#nbd.listen(place)
      // What systemd opened is known only now.
      if (!settings.insecure) refuseExposure(bound)
    }
    await this.#blktap2?.open(this.#registry.targets)
    await this.#control.listen()
  }

  async #close(): Promise<void> {
    const failures: Error[] = []
    const attempt = async (what: string, close: () => Promise<void>): Promise<void> => {
      try {
        await close()
      } catch (error) {
        this.#options.logger.error({ error, what }, 'closing failed')
        failures.push(asFault(error, 'IO', 'closing failed', { where: what }))
      }
    }
    this.#registry.stop()
    for (const { device } of this.#exports.list()) device.stopWaiting?.()
    await this.#exports.stop()
    await attempt('NBD server', () => this.#nbd.close())
    await attempt('replication links', () => this.#registry.close())
    await this.#exports.close(attempt)
    await attempt('checkpoint sockets', async () => this.#blktap2?.close())
    await attempt('control socket', () => this.#control.close())
    const [first] = failures
    if (first !== undefined) throw first
  }
}
