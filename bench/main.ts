/**
 * `npm run bench`: colotap beside its peers on this machine, in one run.
 *
 *   npm run bench                       everything; writes docs/benchmarks.md
 *   npm run bench -- --quick            one short round; prints only
 *   npm run bench -- --only raw,vhd     some sections; prints only, unless --output names a file
 *   --seconds N  --rounds N  --directory DIR  --output FILE
 *
 * A run never fails because something is slow: it says which budgets were missed.
 */

import { writeFile } from 'node:fs/promises'
import path from 'node:path'
import { parseArgs } from 'node:util'
import { PROJECT } from '../test/support/colotap.ts'
import { ProgramScope, tempDirectory } from '../test/support/scope.ts'
import { abuseSection } from './abuse.ts'
import { checkpointSection } from './checkpoint.ts'
import type { Effort } from './effort.ts'
import { machineFacts } from './machine.ts'
import { replicationSection } from './replication.ts'
import { markdown, page } from './report.ts'
import { memorySection, qcowSection, rawSection, vhdSection } from './single-server.ts'
import type { Section } from './table.ts'
import { takeOverSection } from './take-over.ts'

const SECTIONS: Readonly<Record<string, (effort: Effort) => Promise<Section>>> = {
  raw: rawSection,
  memory: memorySection,
  qcow: qcowSection,
  vhd: vhdSection,
  replication: replicationSection,
  checkpoint: checkpointSection,
  'take-over': takeOverSection,
  abuse: abuseSection,
}

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      quick: { type: 'boolean', default: false },
      only: { type: 'string' },
      seconds: { type: 'string' },
      rounds: { type: 'string' },
      directory: { type: 'string' },
      output: { type: 'string' },
    },
  })
  const names = values.only?.split(',') ?? Object.keys(SECTIONS)
  const unknown = names.filter((name) => !(name in SECTIONS))
  if (unknown.length > 0) {
    throw new Error(
      `no section ${unknown.join(', ')}; there are: ${Object.keys(SECTIONS).join(', ')}`,
    )
  }
  const seconds = positive('--seconds', values.seconds ?? (values.quick ? '2' : '5'))
  const rounds = positive('--rounds', values.rounds ?? (values.quick ? '1' : '3'))
  const whole = values.only === undefined && !values.quick
  const output = values.output ?? (whole ? path.join(PROJECT, 'docs', 'benchmarks.md') : undefined)

  const scope = new ProgramScope()
  try {
    const directory = await tempDirectory(scope, values.directory)
    const facts = await machineFacts(scope, directory)
    const effort = { seconds, rounds, directory, progress: say }
    const sections: Section[] = []
    for (const name of names) {
      say(`${name}:`)
      const section = await measured(name, effort)
      sections.push(section)
      console.log(`\n${markdown(section)}\n`)
    }
    if (output === undefined) return
    const command = ['npm run bench', ...withDashes(process.argv.slice(2))].join(' ')
    const date = new Date().toISOString().slice(0, 10)
    await writeFile(output, page({ command, date, seconds, rounds, facts }, sections))
    say(`wrote ${path.relative(process.cwd(), output)}`)
  } finally {
    await scope.end()
  }
}

/** The section, or the reason why there is none: the other sections of a long run are not lost with it. */
async function measured(name: string, effort: Effort): Promise<Section> {
  try {
    return await SECTIONS[name]!(effort)
  } catch (error) {
    process.exitCode = 1
    const lines = (error instanceof Error ? error.message : String(error)).split('\n')
    const reason = lines.find((line) => line.startsWith('stderr: ')) ?? lines[0] ?? ''
    say(lines.join('\n'))
    return { title: name, about: `Not measured: ${reason.replace('stderr: ', '')}`, rows: [] }
  }
}

function positive(option: string, text: string): number {
  const value = Number(text)
  if (Number.isInteger(value) && value > 0) return value
  throw new Error(`${option} takes a positive whole number, not "${text}"`)
}

function withDashes(args: readonly string[]): string[] {
  return args.length === 0 ? [] : ['--', ...args]
}

function say(line: string): void {
  process.stderr.write(`${line}\n`)
}

await main()
