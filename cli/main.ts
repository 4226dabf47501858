/**
 * The command line: chooses the subcommand and turns its outcome into an exit code.
 *
 * Invariant: 0 is done; 1 is failed, with one line on standard error that says what, where and what to do; 2 is a
 * command line that was not understood, with one line as well.
 */

import { Fault } from '../core/fault.ts'
import { checkpoint, events, status } from './ask-server.ts'
import { add, remove, resize } from './change-exports.ts'
import {
  acknowledge,
  connect,
  demote,
  disconnect,
  promote,
  resync,
  set,
  switchover,
} from './change-group.ts'
import { pause, reopen, resume } from './change-pipeline.ts'
import { closest } from './closest.ts'
import {
  columns,
  helpOf,
  parse,
  UsageError,
  type Subcommand,
  type Terminal,
} from './command-line.ts'
import { demo } from './demo.ts'
import { IMAGE_SUBCOMMANDS } from './image/subcommands.ts'
import { progressLine, screenful } from './progress.ts'
import { serve } from './serve.ts'
import { soak } from './soak.ts'
import { top } from './top.ts'
import { verify } from './verify.ts'
import { version } from './version.ts'

const SUBCOMMANDS: readonly Subcommand[] = [
  serve,
  status,
  top,
  checkpoint,
  promote,
  demote,
  switchover,
  connect,
  disconnect,
  resync,
  acknowledge,
  verify,
  set,
  add,
  remove,
  resize,
  pause,
  resume,
  reopen,
  events,
  ...IMAGE_SUBCOMMANDS,
  demo,
  soak,
  version,
]

/** Runs the command line; the process exits with its code when nothing is left to do. */
export async function main(args: readonly string[] = process.argv.slice(2)): Promise<void> {
  // Whoever reads the output may stop reading: that is no failure of the command.
  process.stdout.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code !== 'EPIPE') throw error
  })
  const terminal: Terminal = {
    print: (text) => process.stdout.write(`${text}\n`),
    env: process.env,
    uid: process.getuid?.() ?? -1,
    pid: process.pid,
    screen: process.stdout.isTTY ? (text) => process.stdout.write(screenful(text)) : undefined,
    progress: process.stderr.isTTY ? (line) => process.stderr.write(progressLine(line)) : undefined,
  }
  const { code, complaint } = await outcome(args, terminal)
  terminal.progress?.('')
  if (complaint !== undefined) process.stderr.write(`colotap: ${complaint}\n`)
  process.exitCode = code
}

const IMAGE_NEEDS = 'image needs to know what to do (see: colotap image --help)'

interface Outcome {
  readonly code: 0 | 1 | 2
  readonly complaint?: string
}

/** The same without a process, for main() and for tests. */
export async function outcome(args: readonly string[], terminal: Terminal): Promise<Outcome> {
  try {
    await dispatch(args, terminal)
    return { code: 0 }
  } catch (error) {
    if (error instanceof UsageError) return { code: 2, complaint: error.message }
    if (error instanceof Fault) return { code: 1, complaint: error.message }
    const stack = error instanceof Error ? (error.stack ?? error.message) : String(error)
    return { code: 1, complaint: `a bug in colotap: ${stack}` }
  }
}

async function dispatch([first, ...rest]: readonly string[], terminal: Terminal): Promise<void> {
  if (first === undefined) throw new UsageError('no command is given (see: colotap --help)')
  if (first === '--help' || first === '-h' || (first === 'help' && rest.length === 0)) {
    terminal.print(overview())
    return
  }
  const words = first === '--version' ? ['version'] : first === 'help' ? rest : [first, ...rest]
  const named = commandOf(words)
  if (named === undefined) {
    if (words[0] === 'image' && words.length === 1) throw new UsageError(IMAGE_NEEDS)
    if (words[0] === 'image' && (words[1] === '--help' || words[1] === '-h')) {
      terminal.print(overview((name) => name.startsWith('image ')))
      return
    }
    throw unknownCommand(words[0] === 'image' ? words.slice(0, 2).join(' ') : (words[0] ?? ''))
  }
  const { command, args } = named
  const given = first === 'help' ? 'help' : parse(command, args)
  if (given === 'help') terminal.print(helpOf(command))
  else await command.run(given, terminal)
}

/** A command has one word for a name, or two. */
function commandOf(
  words: readonly string[],
): { command: Subcommand; args: readonly string[] } | undefined {
  for (const length of [2, 1]) {
    const name = words.slice(0, length).join(' ')
    const command = SUBCOMMANDS.find((candidate) => candidate.name === name)
    if (command !== undefined) return { command, args: words.slice(length) }
  }
  return undefined
}

function unknownCommand(name: string): UsageError {
  const what = name.startsWith('-') ? 'option' : 'command'
  const meant = closest(name, [
    ...SUBCOMMANDS.map((command) => command.name),
    '--help',
    '--version',
  ])
  const hint = meant === undefined ? '' : `, did you mean "${meant}"?`
  return new UsageError(`unknown ${what} "${name}"${hint} (see: colotap --help)`)
}

function overview(shown: (name: string) => boolean = () => true): string {
  const rows = SUBCOMMANDS.filter(({ name }) => shown(name)).map(
    ({ name, summary }) => [name, summary] as const,
  )
  return `usage: colotap COMMAND [OPTIONS]\n\n${columns(rows)}\n\n"colotap COMMAND --help" describes a command.`
}
