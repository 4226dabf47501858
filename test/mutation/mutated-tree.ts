/**
 * Copies of the program and its tests as JavaScript, in which one file after the other is replaced by a wrong one. The
 * sources themselves are never touched, and know nothing of it.
 */

import { cp, mkdir, readdir, readFile, symlink, writeFile } from 'node:fs/promises'
import path from 'node:path'
import ts from 'typescript'

import { runTool, type Result } from '../support/child.ts'
import { tempDirectory, type Scope } from '../support/scope.ts'
import type { Mutant } from './mutant.ts'

/** What the named tests are made of. */
const FOLDERS = [
  'core',
  'net',
  'formats',
  'ramdisk',
  'replication',
  'drivers',
  'nbd',
  'control',
  'cli',
  'test/core',
  'test/ramdisk',
  'test/replication',
  'test/simulation',
  'test/support',
  'test/drivers',
  'test/nbd',
]

/** Characters of a test's output that a failure shows. */
const LONGEST_OUTPUT = 4000

/** A test that hangs has not noticed anything; none of these takes a tenth of it. */
const PATIENCE_MS = 120_000

const COMPILER: ts.CompilerOptions = {
  target: ts.ScriptTarget.ES2022,
  module: ts.ModuleKind.ESNext,
  rewriteRelativeImportExtensions: true,
  verbatimModuleSyntax: true,
}

/** What became of a test. */
export interface Verdict {
  readonly outcome: 'passed' | 'failed' | 'not run' | 'never ended'
  /** The end of what it said. */
  readonly output: string
}

export class MutatedTree {
  readonly #scope: Scope
  /** By file: its text when the tree was made, whatever becomes of it meanwhile. */
  readonly #sources: ReadonlyMap<string, string>
  readonly #folder: string

  private constructor(scope: Scope, sources: ReadonlyMap<string, string>, folder: string) {
    this.#scope = scope
    this.#sources = sources
    this.#folder = folder
  }

  /** @param project the folder of package.json */
  static async of(scope: Scope, project: string): Promise<MutatedTree> {
    const folder = await tempDirectory(scope)
    await writeFile(path.join(folder, 'package.json'), '{ "type": "module" }')
    await symlink(path.join(project, 'node_modules'), path.join(folder, 'node_modules'))
    const sources = new Map<string, string>()
    for (const name of FOLDERS) await read(project, name, sources)
    for (const [file, source] of sources) await write(folder, file, source)
    return new MutatedTree(scope, sources, folder)
  }

  async copy(): Promise<MutatedTree> {
    const folder = await tempDirectory(this.#scope)
    await cp(this.#folder, folder, { recursive: true, verbatimSymlinks: true })
    return new MutatedTree(this.#scope, this.#sources, folder)
  }

  /** Runs one test of a file as the tree is now. */
  async run(file: string, test: string): Promise<Verdict> {
    // None of the settings of the test runner that runs this.
    const settings = [
      `PATH=${process.env['PATH'] ?? ''}`,
      'SIMULATION_SECONDS=0',
      `TAP_TIMEOUT=${PATIENCE_MS / 1000}`,
      `TAP_GREP=/^${escaped(test)}$/`,
    ]
    const running = runTool(
      this.#scope,
      'env',
      ['-i', ...settings, process.execPath, path.join(this.#folder, javaScript(file))],
      { cwd: this.#folder, patienceMs: 2 * PATIENCE_MS },
    )
    try {
      const child = await running
      const output = (child.stdout + child.stderr).slice(-LONGEST_OUTPUT)
      return { outcome: outcomeOf(test, child), output }
    } catch (error) {
      return { outcome: 'never ended', output: String(error).slice(-LONGEST_OUTPUT) }
    }
  }

  /** Plants a defect for as long as `work` takes. @throws when its place is not found exactly once */
  async plant<T>(mutant: Mutant, work: () => Promise<T>): Promise<T> {
    const { file, from, to, defect } = mutant
    const source = this.#sources.get(file) ?? ''
    const places = source.split(from).length - 1
    if (places !== 1)
      throw new Error(`${defect}: its place is found ${places} times in ${file}:\n${from}`)
    await write(
      this.#folder,
      file,
      source.replace(from, () => to),
    )
    try {
      return await work()
    } finally {
      await write(this.#folder, file, source)
    }
  }
}

/** Tests stand in the first column of TAP; their assertions are indented, and those that were not asked for are skipped. */
function outcomeOf(test: string, { stdout, code }: Result): Verdict['outcome'] {
  const found = new RegExp(`^(not )?ok \\d+ - ${escaped(test)}( #.*)?$`, 'm').exec(stdout)
  // A process that ended in the middle of it has failed it, too.
  if (found === null)
    return code !== 0 && stdout.includes(`# Subtest: ${test}\n`) ? 'failed' : 'not run'
  if (found[1] !== undefined) return 'failed'
  return found[2]?.includes('SKIP') === true ? 'not run' : 'passed'
}

function escaped(text: string): string {
  return text.replace(/[.*+?^${}()|[\]\\]/g, '\\$&')
}

async function read(project: string, name: string, into: Map<string, string>): Promise<void> {
  for (const entry of await readdir(path.join(project, name), { withFileTypes: true })) {
    const file = path.join(name, entry.name)
    if (entry.isDirectory()) await read(project, file, into)
    else if (entry.name.endsWith('.ts'))
      into.set(file, await readFile(path.join(project, file), 'utf8'))
  }
}

async function write(folder: string, file: string, source: string): Promise<void> {
  const target = path.join(folder, javaScript(file))
  await mkdir(path.dirname(target), { recursive: true })
  const { outputText } = ts.transpileModule(source, { compilerOptions: COMPILER, fileName: file })
  await writeFile(target, outputText)
}

function javaScript(file: string): string {
  return file.replace(/\.ts$/, '.js')
}
