/**
 * The composition root: makes a server of exports, replication groups, NBD listeners and a control socket.
 *
 * Invariants:
 *  - What was opened is closed in an order in which nothing is used after its close: clients, links, disks, control.
 *  - A start that fails closes everything that it opened, and reports why it failed.
 *  - A close that fails in one part still closes the others, and then reports the first failure.
 */

import { Blktap2Doors } from '../control/blktap2-doors.ts'
import type { ControlContext, ExportSummary } from '../control/command.ts'
import { EventBus } from '../control/events.ts'
import { QmpServer } from '../control/qmp-server.ts'
import { BufferPool } from '../core/buffer-pool.ts'
import { asFault } from '../core/fault.ts'
import type { Logger } from '../core/logger.ts'
import { MiB } from '../core/units.ts'
import type { Driver } from '../drivers/driver.ts'
import { openPipeline } from '../drivers/open.ts'
import { ReplicationRegistry } from '../drivers/replication-registry.ts'
import type { Export, ExportTable } from '../nbd/export.ts'
import type { ListenPlace } from '../nbd/listen-place.ts'
import { NbdServer } from '../nbd/server.ts'
import { refuseExposure } from './listen-settings.ts'
import type { ExportSettings, ServeSettings } from './serve-settings.ts'

/** Payloads and replies of all NBD clients together; taken from the system as it is needed. */
const POOL = 512 * MiB

interface ServerOptions {
  readonly settings: Pick<
    ServeSettings,
    'exports' | 'listen' | 'limits' | 'control' | 'stateDir' | 'blktap2Dir' | 'insecure'
  >
  readonly drivers: readonly Driver[]
  readonly logger: Logger
  /** A client asks for the end, by the command `quit`. */
  readonly onQuit: () => void
}

export class Server implements ControlContext {
  readonly #options: ServerOptions
  readonly #events = new EventBus()
  readonly #exports = new Map<string, Export>()
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
    this.#nbd = new NbdServer({
      exports: this.#table(),
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
    const users = this.#nbd.connections.map(({ exportName }) => exportName)
    return [...this.#exports.values()].map(({ name, device }) => ({
      name,
      size: device.geometry.size,
      readOnly: device.geometry.readOnly,
      connections: users.filter((user) => user === name).length,
    }))
  }

  changeLogs(): ReturnType<ControlContext['changeLogs']> {
    return [...this.#exports.values()].flatMap(({ name, device: { changeLog } }) =>
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
    for (const each of settings.exports) this.#exports.set(each.name, await this.#open(each))
    await this.#registry.start()
    for (const place of settings.listen) {
      const bound = await this.#nbd.listen(place)
      // What systemd opened is known only now.
      if (!settings.insecure) refuseExposure(bound)
    }
    await this.#blktap2?.open(this.#registry.targets)
    await this.#control.listen()
  }

  async #open({ name, pipeline, description, readOnly }: ExportSettings): Promise<Export> {
    const device = await openPipeline(pipeline, this.#options.drivers, {
      exportName: name,
      readOnly,
      logger: this.#options.logger,
      insecure: this.#options.settings.insecure,
      attachReplica: (stage, mode, below) => this.#registry.attach(stage, mode, name, below),
    })
    return { name, description, device }
  }

  /** The empty name is the protocol's default export: the only one, where there is only one. */
  #table(): ExportTable {
    const find = (name: string): Export | undefined => {
      const [only, second] = this.#exports.values()
      return name === '' && second === undefined ? only : this.#exports.get(name)
    }
    return { find, list: () => [...this.#exports.values()] }
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
    for (const { device } of this.#exports.values()) device.stopWaiting?.()
    await attempt('NBD server', () => this.#nbd.close())
    await attempt('replication links', () => this.#registry.close())
    await Promise.all(
      [...this.#exports.values()].map(({ name, device }) =>
        attempt(`export ${name}`, () => device.close()),
      ),
    )
    await attempt('checkpoint sockets', async () => this.#blktap2?.close())
    await attempt('control socket', () => this.#control.close())
    const [first] = failures
    if (first !== undefined) throw first
  }
}
