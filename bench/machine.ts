/** The facts of the machine that a table of results is worth nothing without. */

import { readFile } from 'node:fs/promises'
import os from 'node:os'
import { runTool } from '../test/support/child.ts'
import type { Scope } from '../test/support/scope.ts'

/** Each fact by its name, in the order to print. */
export async function machineFacts(
  scope: Scope,
  directory: string,
): Promise<readonly (readonly [string, string])[]> {
  const firstLine = async (command: string, ...args: string[]): Promise<string> => {
    const { stdout } = await runTool(scope, command, args)
    return stdout.split('\n')[0]?.trim() ?? ''
  }
  const cpus = os.cpus()
  const distribution = /^PRETTY_NAME="(.*)"$/m.exec(await readFile('/etc/os-release', 'utf8'))
  return [
    ['processor', `${cpus[0]?.model ?? 'unknown'}, ${cpus.length} cores`],
    ['memory', `${Math.round(os.totalmem() / 1024 ** 3)} GiB`],
    ['system', `${distribution?.[1] ?? os.type()}, Linux ${os.release()}`],
    ['file system', await firstLine('stat', '--file-system', '--format=%T', directory)],
    ['Node', process.version],
    ['fio', await firstLine('fio', '--version')],
    ['QEMU', await firstLine('qemu-nbd', '--version')],
    ['nbdkit', await firstLine('nbdkit', '--version')],
    ['load before the run', os.loadavg()[0]?.toFixed(2) ?? ''],
  ]
}
