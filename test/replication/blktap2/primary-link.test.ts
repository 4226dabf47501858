/** A primary's group over the blktap2 wire, against a secondary that behaves as the old code does. */

import { randomUUID } from 'node:crypto'
import { once } from 'node:events'
import net from 'node:net'
import { setImmediate } from 'node:timers/promises'

import t, { type Test } from 'tap'

import type { BlockDevice } from '../../../core/block-device.ts'
import { SILENT } from '../../../core/logger.ts'
import { KiB, MiB } from '../../../core/units.ts'
import { blktap2Dial } from '../../../replication/blktap2/primary-link.ts'
import type { Dial, Link, LinkHandlers } from '../../../replication/environment.ts'
import type { GroupEvent } from '../../../replication/group.ts'
import { frame, PARTIAL, type Frame, type FrameType } from '../../../replication/machine/frame.ts'
import { decodeRefusal, encodeHello, type Hello } from '../../../replication/machine/handshake.ts'
import { memoryRegions } from '../../../replication/regions/region-store.ts'
import { ReplicaGroup } from '../../../replication/replica-group.ts'
import { MemoryDevice } from '../../nbd/memory-device.ts'
import { freePorts } from '../../support/scope.ts'
import { kept } from '../machine/frames.ts'
import { PRIMARY } from '../machine/hellos.ts'
import { HandClock } from './hand-clock.ts'
import { OldSecondary } from './old-wire.ts'

const SIZE = 1 * MiB

interface Host {
  readonly old: OldSecondary
  readonly sockets: net.Socket[]
  /** What it does with what comes; replaced by tests. */
  conduct: (socket: net.Socket, chunk: Buffer) => void
}

async function startOld(t: Test, port: number, size = SIZE): Promise<Host> {
  const old = new OldSecondary(size)
  const host: Host = {
    old,
    sockets: [],
    conduct: (socket, chunk) => socket.write(old.receive(chunk)),
  }
  const server = net.createServer((socket) => {
    host.sockets.push(socket)
    socket.on('error', () => undefined)
    socket.on('data', (chunk) => host.conduct(socket, chunk))
  })
  server.listen(port, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(() => {
    for (const socket of host.sockets) socket.destroy()
    server.close()
  })
  return host
}

class Primary {
  readonly image: MemoryDevice
  readonly group: ReplicaGroup
  readonly disk: BlockDevice
  readonly clock = new HandClock()
  readonly events: GroupEvent[] = []
  dials = 0
  #watchers: (() => void)[] = []

  constructor(port: number, size = SIZE) {
    const dial = blktap2Dial('127.0.0.1', port, () => this.clock.nowMs)
    this.group = new ReplicaGroup(
      {
        ...{ group: 'vm', mode: 'remus', role: 'primary', peer: 'old', listens: false },
        ...{ wire: 'blktap2', identical: true, onLinkLoss: 'continue', intervalMs: 0 },
        ...{ memory: MiB, durability: 'memory', journal: 1, heartbeatMs: 500, timeoutMs: 5000 },
        ...{ fence: null, partBytes: MiB, resyncRate: 0, ack: 'sent' },
        ...{ compareBytes: MiB / 4, comparesFirst: false },
      },
      {
        logger: SILENT,
        newId: randomUUID,
        fence: () => Promise.reject(new Error('nobody is to be asked')),
        timers: this.clock.timers,
        nowMs: () => this.clock.nowMs,
        onEvent: (event) => {
          this.events.push(event)
          for (const look of this.#watchers) look()
        },
        openRegions: (_, _disk, bytes) => Promise.resolve(memoryRegions(bytes, MiB)),
        removeRegions: () => Promise.resolve(),
        hasSegments: () => Promise.resolve(false),
        openSegments: () => Promise.reject(new Error('a primary has no journal')),
      },
      (connected, failed) => {
        this.dials += 1
        return dial(connected, failed)
      },
    )
    this.image = new MemoryDevice(size)
    this.disk = this.group.attach('disk', this.image)
  }

  /** Resolves when the protection is `wanted`, and gives the reason for it. */
  async until(wanted: string): Promise<string> {
    while (this.group.status().protection !== wanted)
      await new Promise<void>((resolve) => this.#watchers.push(resolve))
    return this.group.status().reason ?? ''
  }

  /** Lets time pass until `holds`, one attempt to connect after the other. */
  async wait(holds: () => boolean): Promise<void> {
    while (!holds()) {
      this.clock.advance(250)
      await setImmediate()
    }
  }
}

/** A link without a machine. */
class Conversation {
  readonly link: Link
  readonly #frames: Frame[] = []
  #arrived: (() => void) | undefined

  private constructor(open: (handlers: LinkHandlers) => Link) {
    this.link = open({
      frame: (arrived) => {
        this.#frames.push(kept(arrived))
        this.#arrived?.()
      },
      closed: () => undefined,
    })
  }

  static async begin(dial: Dial, hello: Hello): Promise<Conversation> {
    const conversation = await new Promise<Conversation>((resolve, reject) => {
      dial(
        (open) => resolve(new Conversation(open)),
        (reason) => reject(new Error(reason)),
      )
    })
    conversation.link.send(frame('hello', { payload: encodeHello(hello) }))
    return conversation
  }

  /** The payload of the first frame of a type. */
  async heard(type: FrameType): Promise<Buffer> {
    for (;;) {
      const found = this.#frames.find((arrived) => arrived.type === type)
      if (found !== undefined) return found.payload
      await new Promise<void>((resolve) => {
        this.#arrived = resolve
      })
    }
  }
}

async function start(t: Test, size = SIZE): Promise<{ host: Host; primary: Primary }> {
  const [port] = await freePorts(1)
  const host = await startOld(t, port!, size)
  const primary = new Primary(port!, size)
  t.teardown(() => primary.group.close())
  await primary.group.start()
  await primary.until('protected')
  return { host, primary }
}

void t.test(
  'an old secondary gets what it can take, and has the image after a checkpoint',
  async (t) => {
    const { host, primary } = await start(t)
    t.equal(host.old.commits, 1, 'it was asked to commit nothing before it was trusted')
    const { disk, group, image } = primary
    await disk.write(Buffer.alloc(512 * KiB, 1), 4 * KiB, 0)
    await disk.write(Buffer.alloc(5 * KiB, 2), 600 * KiB, 0)
    await disk.zero(100 * KiB, 300 * KiB, 0)
    await disk.trim(601 * KiB, 1 * KiB, 0)
    t.notOk(
      host.old.disk.some((byte) => byte !== 0),
      'nothing before the checkpoint',
    )
    t.match(await group.checkpoint(), { checkpoint: 1, bytes: (512 + 5 + 300 + 1) * KiB })
    t.ok(host.old.disk.equals(image.bytes))
    t.same(host.old.complaints, [])
    t.ok(host.old.sizes.every((size) => size <= 4096))
    t.match(group.status(), { protection: 'protected', durable: false, checkpoint: 1 })
    await Promise.all([group.checkpoint(), group.checkpoint()])
    t.equal(group.status().checkpoint, 3)
  },
)

void t.test('what was written before the secondary came is sent when it comes', async (t) => {
  const [port] = await freePorts(1)
  const primary = new Primary(port!)
  t.teardown(() => primary.group.close())
  await primary.group.start()
  await primary.disk.write(Buffer.alloc(64 * KiB, 3), 128 * KiB, 0)
  await t.rejects(primary.group.checkpoint(), { code: 'LINK_LOST' })
  const { old } = await startOld(t, port!)
  await primary.wait(() => primary.group.status().protection === 'protected')
  await primary.group.checkpoint()
  t.ok(old.disk.equals(primary.image.bytes))
})

void t.test('nobody is a secondary before it has answered, and may come late', async (t) => {
  const [port] = await freePorts(1)
  const host = await startOld(t, port!)
  const answers = host.conduct
  host.conduct = () => undefined
  const primary = new Primary(port!)
  t.teardown(() => primary.group.close())
  await primary.group.start()
  await primary.disk.write(Buffer.alloc(4 * KiB, 3), 0, 0)
  await primary.wait(() => primary.dials > 2)
  t.notOk(primary.events.some(({ event }) => event === 'REPLICATION_LINK'))
  t.match(primary.group.status(), { protection: 'unprotected', reason: /silent for 5000 ms/ })
  host.conduct = (socket) => socket.write('HTTP/1.1 400 Bad Request\r\n')
  const { dials } = primary
  await primary.wait(() => primary.dials > dials + 1)
  t.match(primary.group.status().reason, /"HTTP" is no answer/)
  host.conduct = answers
  await primary.wait(() => primary.group.status().protection === 'protected')
  await primary.group.checkpoint()
  t.ok(host.old.disk.equals(primary.image.bytes))
})

void t.test('a secondary that is lost is lost for good, and nobody is asked again', async (t) => {
  const { host, primary } = await start(t)
  await primary.group.checkpoint()
  host.sockets[0]!.destroy()
  await primary.until('unprotected')
  const state = { protection: 'unprotected', heals: false, checkpoint: 1, peer: null }
  const reason = /closed the connection.*make the images equal, and start both sides anew/
  t.match(primary.group.status(), { ...state, reason })
  const { dials } = primary
  await primary.wait(() => primary.dials > dials + 3)
  t.match(primary.group.status(), { ...state, reason })
  t.equal(host.sockets.length, 1)
  await primary.disk.write(Buffer.alloc(4 * KiB, 9), 0, 0)
  t.equal(primary.group.status().disks[0]!.dirtyBytes, 4 * KiB)
  await t.rejects(primary.group.checkpoint(), {
    code: 'LINK_LOST',
    message: /start both sides anew/,
  })
  primary.group.setReplicating(false)
  primary.group.setReplicating(true)
  await primary.until('unprotected')
  t.equal(host.sockets.length, 1)
})

void t.test('a link that our side has ended is not made again either', async (t) => {
  const { host, primary } = await start(t)
  primary.group.setReplicating(false)
  await once(host.sockets[0]!, 'close')
  primary.group.setReplicating(true)
  await primary.wait(() => !primary.group.status().heals)
  t.match(primary.group.status(), { protection: 'unprotected', reason: /switched off.*anew/ })
  t.equal(host.sockets.length, 1)
})

void t.test('an answer that was not asked for, or is none, ends the link', async (t) => {
  for (const [answer, reason] of [
    ['done', /not asked for/],
    ['fail', /"fail" is no answer/],
  ] as const) {
    const { host, primary } = await start(t)
    host.sockets[0]!.write(answer)
    t.match(await primary.until('unprotected'), reason)
  }
})

void t.test(
  'a secondary that leaves a commit unanswered is gone, and the checkpoint has failed',
  async (t) => {
    const { host, primary } = await start(t)
    host.conduct = () => undefined
    const checkpoint = primary.group.checkpoint()
    checkpoint.catch(() => undefined)
    await primary.wait(() => primary.group.status().protection !== 'protected')
    await t.rejects(checkpoint, { code: 'LINK_LOST', message: /checkpoint 1 is not known/ })
    t.ok(primary.clock.nowMs >= 5000)
  },
)

void t.test('an idle secondary lives on', async (t) => {
  const { primary } = await start(t)
  const startMs = primary.clock.nowMs
  await primary.wait(() => primary.clock.nowMs > startMs + 60_000)
  t.equal(primary.group.status().protection, 'protected')
  await primary.group.checkpoint()
})

void t.test('a secondary that takes nothing is gone, and the guest goes on', async (t) => {
  const { host, primary } = await start(t, 256 * MiB)
  host.sockets[0]!.pause()
  let written = false
  const writing = Promise.resolve(primary.disk.zero(0, 256 * MiB, 0)).then(() => (written = true))
  await primary.wait(() => written)
  await writing
  t.match(primary.group.status(), { protection: 'unprotected', reason: /silent for 5000 ms/ })
  t.equal(primary.group.status().disks[0]!.dirtyBytes, 256 * MiB)
})

void t.test(
  'a commit behind much data may take longer than the silence that is allowed',
  async (t) => {
    const size = 128 * MiB
    const { host, primary } = await start(t, size)
    const { conduct } = host
    const startMs = primary.clock.nowMs
    let received = 0
    host.conduct = (socket, chunk) => {
      // A second for every 4 MiB: the kernel cannot hold as much as comes in the time allowed.
      if (Math.floor((received + chunk.length) / (4 * MiB)) > Math.floor(received / (4 * MiB)))
        primary.clock.advance(1000)
      received += chunk.length
      conduct(socket, chunk)
    }
    const zeroed = primary.disk.zero(0, size, 0)
    await primary.group.checkpoint(120_000)
    await zeroed
    t.ok(primary.clock.nowMs - startMs > 20_000)
    t.equal(primary.group.status().protection, 'protected')
  },
)

void t.test(
  'a primary that is past its beginning finds no secondary that could follow',
  async (t) => {
    const [port] = await freePorts(1)
    const primary = new Primary(port!)
    t.teardown(() => primary.group.close())
    await primary.group.start()
    await primary.group.demote(false)
    await primary.group.promote(true)
    const host = await startOld(t, port!)
    await primary.wait(() => !primary.group.status().heals)
    const { dials } = primary
    await primary.wait(() => primary.dials > dials + 2)
    const reason = /copy of everything, which the blktap2 wire cannot carry: make the images equal/
    t.match(primary.group.status(), { protection: 'unprotected', heals: false, reason })
    t.same([host.sockets.length, host.old.commits], [1, 0], 'it was asked nothing, and once')
  },
)

void t.test('a command for a copy is refused, and the link stays', async (t) => {
  const { primary } = await start(t)
  await t.rejects(primary.group.resync(false), {
    code: 'NOT_PERMITTED',
    message: /cannot carry a copy/,
  })
  t.equal(primary.group.status().protection, 'protected')
})

void t.test('a part of a copy is never committed', async (t) => {
  const [port] = await freePorts(1)
  const host = await startOld(t, port!)
  const dial = blktap2Dial('127.0.0.1', port!, () => 0)
  const hello: Hello = { ...PRIMARY, identical: true, checkpoint: 0, announced: 0 }
  const first = await Conversation.begin(dial, hello)
  const { link } = first
  await first.heard('ready')
  link.send(frame('zero', { position: 0, extent: 4096 }))
  link.send(frame('checkpoint', { position: 1, flags: PARTIAL }))
  link.send(frame('checkpoint', { position: 2 }))
  t.match(decodeRefusal(await first.heard('refuse')).reason, /a copy was asked for/)
  link.close('refused')
  await once(host.sockets[0]!, 'close')
  t.equal(host.old.commits, 1, 'the one that commits nothing')
  const second = await Conversation.begin(dial, hello)
  t.match(decodeRefusal(await second.heard('refuse')).reason, /a copy was asked for/)
  t.equal(host.sockets.length, 1)
})
