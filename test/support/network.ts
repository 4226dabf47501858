/**
 * Two hosts with a wire between them, on one machine: network namespaces, joined by a virtual cable, whose ends can
 * be made deaf one by one. Works for root, and for whoever may make user namespaces.
 *
 * Invariant: nothing of it outlives its scope; a namespace goes with the process that holds it open.
 */

import { mustRun, startChild, type Child } from './child.ts'
import type { HostPlace } from './replica-pair.ts'
import type { Scope } from './scope.ts'

/** Ordinary users get their namespaces inside one in which they are root. */
const AS_ROOT = process.getuid?.() === 0
const DEVICE = 'wire'
const HOLD = ['sh', '-c', 'echo held; exec sleep infinity']

export class NetworkHost implements HostPlace {
  readonly address: string
  readonly within: readonly string[]
  readonly #scope: Scope

  constructor(scope: Scope, { pid }: Child, address: string) {
    this.#scope = scope
    this.address = address
    this.within = [...enter(pid), '--']
  }

  /** Runs a command on this host. @throws Error when it fails */
  async run(...command: string[]): Promise<void> {
    const [program = '', ...args] = [...this.within, ...command]
    await mustRun(this.#scope, program, args)
  }

  /** Nothing that is sent to this host arrives any more; what it sends does. */
  async deafen(): Promise<void> {
    await this.run('nft', 'add', 'table', 'inet', 'deaf')
    const hook = '{ type filter hook input priority 0; policy drop; }'
    await this.run('nft', 'add', 'chain', 'inet', 'deaf', 'input', hook)
  }

  async hear(): Promise<void> {
    await this.run('nft', 'delete', 'table', 'inet', 'deaf')
  }

  /** Takes the cable out, or puts it back. */
  async plug(plugged: boolean): Promise<void> {
    await this.run('ip', 'link', 'set', DEVICE, plugged ? 'up' : 'down')
  }

  /** What it sends leaves at most so fast. */
  async slow(megabits: number): Promise<void> {
    const filter = ['tbf', 'rate', `${megabits}mbit`, 'burst', '32kb', 'latency', '400ms']
    await this.run('tc', 'qdisc', 'add', 'dev', DEVICE, 'root', ...filter)
  }
}

/** Makes two hosts that reach each other, and nobody else, at addresses set aside for documentation (RFC 5737). */
export async function layNetwork(
  scope: Scope,
): Promise<{ primary: NetworkHost; secondary: NetworkHost }> {
  const unshare = ['unshare', '--net', ...(AS_ROOT ? [] : ['--map-root-user']), ...HOLD]
  const one = await held(scope, unshare)
  const user = AS_ROOT ? [] : enter(one.pid).filter((argument) => argument !== '--net')
  const other = await held(scope, [...user, 'unshare', '--net', ...HOLD])
  const primary = new NetworkHost(scope, one, '192.0.2.1')
  const secondary = new NetworkHost(scope, other, '192.0.2.2')
  const peer = ['peer', 'name', DEVICE, 'netns', String(other.pid)]
  await primary.run('ip', 'link', 'add', DEVICE, 'type', 'veth', ...peer)
  for (const host of [primary, secondary]) {
    await host.run('ip', 'address', 'add', `${host.address}/24`, 'dev', DEVICE)
    await host.plug(true)
    await host.run('ip', 'link', 'set', 'lo', 'up')
  }
  return { primary, secondary }
}

async function held(scope: Scope, [program = '', ...args]: readonly string[]): Promise<Child> {
  const child = startChild(scope, program, args)
  await child.printed('held')
  return child
}

function enter(pid: number): string[] {
  const user = AS_ROOT ? [] : ['--user', '--preserve-credentials']
  return ['nsenter', '--target', String(pid), ...user, '--net']
}
