/**
 * A real virtual machine: QEMU without KVM, Debian's kernel, and disks that are NBD exports. It runs the scripts of its
 * test, one after the other, and tells what they say.
 *
 * The host and guest-init.sh talk in lines over a virtio port: the host sends scripts, each in base64; the guest answers
 * `ready` once, `say TEXT` while a script runs, and `end STATUS OUTPUT` (the output in base64) after each.
 *
 * Invariants: a guest never outlives its scope; nothing waits for a fixed time; its console, which shows each
 * step of the scripts, is part of the error when it ends or stalls.
 */

import net from 'node:net'
import path from 'node:path'
import { createInterface } from 'node:readline'

import { startChild, type Child } from '../support/child.ts'
import { tempDirectory, type Scope } from '../support/scope.ts'
import { bootFiles } from './initramfs.ts'

/** For one script, the boot included in none: emulated processors are slow, and the machine may be busy. */
const PATIENCE_MS = 240_000

export interface GuestDisk {
  /** The unix socket of the NBD server. */
  readonly socket: string
  readonly exportName: string
}

export interface GuestOptions {
  /** They are /dev/vda, /dev/vdb, … in the guest. */
  readonly disks?: readonly GuestDisk[]
  /** Whether it has a network in which 10.0.2.2 is this machine's loopback. */
  readonly network?: boolean
}

interface Waiter {
  readonly what: string
  resolve(line: string): void
  reject(error: Error): void
}

export class Guest {
  readonly child: Child
  /** All that scripts have said so far. */
  readonly said: string[] = []
  /** Called with each thing that a script says, when it arrives. */
  onSay: (text: string) => void = () => undefined
  readonly #port: net.Socket
  readonly #name: string
  #waiter: Waiter | undefined
  #gone: Error | undefined

  private constructor(child: Child, port: net.Socket) {
    this.child = child
    this.#port = port
    this.#name = `guest ${child.pid}`
    const lines = createInterface({ input: port }).on('line', (line) => this.#receive(line))
    // The interface repeats the socket's errors, which are heard below.
    lines.on('error', () => undefined)
    port.on('error', () => undefined)
    port.on('close', () => this.#fail('ended'))
  }

  /** Starts a guest, and awaits that it is ready for scripts. */
  static async start(scope: Scope, options: GuestOptions = {}): Promise<Guest> {
    const { kernel, initramfs } = await bootFiles(scope)
    const listener = await portListener(scope)
    const child = startChild(scope, 'qemu-system-x86_64', [
      ...['-nodefaults', '-no-user-config', '-display', 'none', '-no-reboot'],
      ...['-machine', 'q35', '-accel', 'tcg', '-cpu', 'max', '-m', '256M', '-serial', 'stdio'],
      ...['-kernel', kernel, '-initrd', initramfs],
      ...['-append', 'console=ttyS0 quiet panic=-1 random.trust_cpu=on'],
      ...['-device', 'virtio-serial-pci'],
      ...['-chardev', `socket,id=host,path=${listener.path}`],
      ...['-device', 'virtserialport,chardev=host'],
      ...(options.disks ?? []).flatMap(diskArguments),
      ...(options.network === true ? NETWORK : []),
    ])
    const connected = new Promise<net.Socket>((resolve, reject) => {
      listener.server.once('connection', resolve)
      child.exited.then(() => reject(new Error(`QEMU did not start: ${child.stderr}`)), reject)
    })
    const guest = new Guest(child, await connected)
    listener.server.close()
    scope.teardown(() => guest.#port.destroy())
    await guest.#next('become ready', PATIENCE_MS)
    return guest
  }

  /**
   * Runs a script of busybox's shell, which ends at the first command that fails; `say TEXT` in it tells the test.
   * @returns what it printed
   */
  async run(script: string, patienceMs = PATIENCE_MS): Promise<string> {
    const answer = this.#next('end its script', patienceMs)
    this.#port.write(`${Buffer.from(script).toString('base64')}\n`)
    const [, status, encoded = ''] = /^end (\d+) (.*)$/.exec(await answer) ?? []
    const output = Buffer.from(encoded, 'base64').toString()
    if (status !== '0')
      throw new Error(
        `${this.#name}: exit ${status ?? '?'} of\n${script}\n${output}\nconsole: ${this.child.stdout}`,
      )
    return output
  }

  /** Switches it off, as its own user would; file systems must have been unmounted. */
  async powerOff(): Promise<void> {
    this.#port.write(`${Buffer.from('exec poweroff -f').toString('base64')}\n`)
    const { code } = await this.child.end()
    if (code !== 0) throw new Error(`${this.#name}: QEMU ended with ${String(code)}`)
  }

  #next(what: string, patienceMs: number): Promise<string> {
    return new Promise((resolve, reject) => {
      if (this.#gone !== undefined) {
        reject(this.#gone)
        return
      }
      const patience = setTimeout(
        () => this.#fail(`did not ${what} within ${patienceMs} ms`),
        patienceMs,
      )
      this.#waiter = {
        what,
        resolve: (line) => {
          clearTimeout(patience)
          resolve(line)
        },
        reject: (error) => {
          clearTimeout(patience)
          reject(error)
        },
      }
    })
  }

  #receive(line: string): void {
    if (line.startsWith('say ')) {
      this.said.push(line.slice(4))
      this.onSay(line.slice(4))
      return
    }
    const waiter = this.#waiter
    this.#waiter = undefined
    waiter?.resolve(line)
  }

  #fail(what: string): void {
    const doing = this.#waiter === undefined ? '' : ` (it was to ${this.#waiter.what})`
    this.#gone ??= new Error(
      `${this.#name}: ${what}${doing}\nconsole: ${this.child.stdout}\nQEMU: ${this.child.stderr}`,
    )
    this.#port.destroy()
    this.#waiter?.reject(this.#gone)
    this.#waiter = undefined
  }
}

function diskArguments({ socket, exportName }: GuestDisk, index: number): string[] {
  const node = `disk${index}`
  const server = `server.type=unix,server.path=${socket},export=${exportName}`
  return [
    ...['-blockdev', `driver=nbd,node-name=${node},${server},discard=unmap`],
    ...['-device', `virtio-blk-pci,drive=${node},discard=on,write-zeroes=on`],
  ]
}

/** Inside, 10.0.2.15 with the gateway 10.0.2.2; nothing of it leaves QEMU but connections to loopback. */
const NETWORK = [
  ...['-netdev', 'user,id=net,restrict=off'],
  ...['-device', 'virtio-net-pci,netdev=net,romfile='],
]

/** QEMU connects to it as it starts, so that nobody has to ask whether it listens. */
async function portListener(scope: Scope): Promise<{ server: net.Server; path: string }> {
  const socket = path.join(await tempDirectory(scope), 'port.sock')
  const server = net.createServer()
  scope.teardown(() => server.close())
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject)
    server.listen(socket, resolve)
  })
  return { server, path: socket }
}
