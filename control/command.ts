/** What a control command is: a name, a schema of its arguments, and what it does with a running server. */

import type { MaybePromise } from '../core/maybe-promise.ts'
import type { ExportPipeline, PipelineStatus } from '../drivers/movable/export-pipeline.ts'
import type { ReplicationGroup } from '../replication/group.ts'
import { check, type ArgumentSchema, type ArgumentValues } from './arguments.ts'
import type { ExportChanges } from './change-logs.ts'

/** An export as the control plane shows it. */
export interface ExportSummary extends Omit<PipelineStatus, 'export'> {
  readonly name: string
  /** Bytes. */
  readonly size: number
  readonly readOnly: boolean
  /** NBD clients that use it now. */
  readonly connections: number
}

/** An export that is to be served from now on. */
export interface NewExport {
  readonly name: string
  readonly pipeline: string
  readonly description: string
  readonly readOnly: boolean
  /** The clients that may use it; undefined where everybody may who can connect. */
  readonly allow?: readonly string[] | undefined
}

/** The pipeline of an export, to be paused and exchanged. */
export type ServedPipeline = Pick<ExportPipeline, 'status' | 'pause' | 'resume' | 'reopen'>

/** What commands act on: the server seen from its control plane. */
export interface ControlContext {
  groups(): readonly ReplicationGroup[]
  exports(): readonly ExportSummary[]
  /** Opens a disk and serves it. @throws Fault, with everything as it was */
  addExport(added: NewExport): Promise<void>
  /** Ends the clients of an export and closes its disk. @throws Fault, IN_USE when it has clients and `force` is not given */
  removeExport(name: string, force: boolean): Promise<void>
  /** Changes the size of an export's disk, in bytes. @throws Fault, with the disk as it was */
  resizeExport(name: string, size: number): Promise<void>
  pipelines(): readonly ServedPipeline[]
  /** The exports whose changes are logged. */
  changeLogs(): readonly ExportChanges[]
  /** Begins an orderly shutdown, as SIGTERM does; returns at once. */
  quit(): void
}

export interface Command {
  readonly name: string
  readonly description: string
  readonly arguments: ArgumentSchema
  /** @throws Fault when the arguments do not fit or the command fails. */
  execute(context: ControlContext, given: Readonly<Record<string, unknown>>): MaybePromise<unknown>
}

interface Definition<Schema extends ArgumentSchema> {
  readonly name: string
  readonly description: string
  readonly arguments: Schema
  run(context: ControlContext, args: ArgumentValues<Schema>): MaybePromise<unknown>
}

export function define<const Schema extends ArgumentSchema>(
  definition: Definition<Schema>,
): Command {
  return {
    name: definition.name,
    description: definition.description,
    arguments: definition.arguments,
    execute: (context, given) => definition.run(context, check(definition.arguments, given)),
  }
}
