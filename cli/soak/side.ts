/** One side of a replicating pair, as seen by its clients: its disks over NBD, its group over the control socket. */

import { QmpClient, type ReceivedEvent } from '../../control/qmp-client.ts'
import { Fault } from '../../core/fault.ts'
import { NbdClient } from '../../nbd/client.ts'
import type { ListenAddress } from '../../nbd/address.ts'
import type { CheckpointResult, GroupStatus } from '../../replication/group.ts'
import { patiently } from './violation.ts'

export interface Side {
  /** For messages: `primary`, `secondary` or the name of a host. */
  readonly name: string
  readonly nbd: ListenAddress
  readonly control: GroupControl
}

export function attach({ nbd }: Side, disk: string): Promise<NbdClient> {
  return NbdClient.connect({ address: nbd, exportName: disk })
}

/** What the server says by itself: how often the link broke, and that there is something to look at again. */
class News {
  losses = 0
  readonly #group: string | undefined
  #next: Promise<void> = Promise.resolve()
  #tell: () => void = () => undefined

  constructor(group: string | undefined) {
    this.#group = group
    this.tell()
  }

  /** Resolves when there is more than there was when it was asked for. */
  get next(): Promise<void> {
    return this.#next
  }

  see({ event, data }: ReceivedEvent): void {
    const ours = this.#group === undefined || data['group'] === this.#group
    if (ours && event === 'REPLICATION_LINK' && data['up'] === false) this.losses += 1
    this.tell()
  }

  tell(): void {
    const tell = this.#tell
    this.#next = new Promise((resolve) => (this.#tell = resolve))
    tell()
  }
}

/** The control socket of a server, for one of its groups. */
export class GroupControl {
  readonly #client: QmpClient
  readonly #group: string | undefined
  readonly #news: News

  private constructor(client: QmpClient, group: string | undefined, news: News) {
    this.#client = client
    this.#group = group
    this.#news = news
    void client.ended.then(() => news.tell())
  }

  /** @param group may be left out where the server has only one */
  static async connect(path: string, group?: string): Promise<GroupControl> {
    const news = new News(group)
    const client = await QmpClient.connect(path, (event) => news.see(event))
    return new GroupControl(client, group, news)
  }

  /** How often the link was seen to break. */
  get losses(): number {
    return this.#news.losses
  }

  async status(): Promise<GroupStatus> {
    const reply = await this.#client.execute('replication-status', this.#named())
    const [group] = (reply as { groups: GroupStatus[] }).groups
    if (group === undefined) {
      const remedy = 'name a server with a colo or remus pipeline'
      throw new Fault('NOT_FOUND', 'the server has no replication group', { remedy })
    }
    return group
  }

  /** @throws Fault when it is not known to be committed */
  async checkpoint(): Promise<CheckpointResult> {
    const reply = await this.#client.execute('replication-checkpoint', this.#named())
    return reply as CheckpointResult
  }

  async promote(force: boolean): Promise<GroupStatus> {
    const reply = await this.#client.execute('replication-promote', { ...this.#named(), force })
    return reply as GroupStatus
  }

  /** Resolves when the status is as `holds` wants it. @throws Violation when it never is, Fault when the server is gone */
  until(what: string, holds: (status: GroupStatus) => boolean): Promise<void> {
    return this.#until(what, async () => holds(await this.status()))
  }

  /** Resolves when the link was seen to break more often than `before`. */
  linkLost(before: number): Promise<void> {
    return this.#until('the loss of the link', async () => {
      // Asked first: without an answer the server is gone, and there is nothing to wait for.
      await this.status()
      return this.losses > before
    })
  }

  async close(): Promise<void> {
    await this.#client.close()
  }

  /** Asks again after each event, so that nothing is missed between question and wait. */
  async #until(what: string, holds: () => Promise<boolean>): Promise<void> {
    const patience = new AbortController()
    const held = async (): Promise<void> => {
      while (!patience.signal.aborted) {
        const { next } = this.#news
        if (await holds()) return
        await next
      }
    }
    try {
      await patiently(held(), what)
    } finally {
      patience.abort()
    }
  }

  #named(): Record<string, unknown> {
    return this.#group === undefined ? {} : { group: this.#group }
  }
}
