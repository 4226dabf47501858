/** What a disk knows about its changes since the last backup, for whoever copies only those. */

export interface ChangeLogStatus {
  /** Where it is kept. */
  readonly path: string
  /** Bytes behind one entry. */
  readonly block: number
  /** Bytes in blocks changed since the last backup that was begun, or since the last that was ended where none is under way. */
  readonly changedBytes: number
  /** Bytes in blocks of the backup under way; undefined where none is. */
  readonly backupBytes: number | undefined
  /** Why every block counts as changed although it may not be; undefined where the log is exact. */
  readonly unknown: string | undefined
}

export interface ChangedRange {
  readonly at: number
  readonly length: number
}

export interface ChangeLog {
  readonly status: ChangeLogStatus
  /**
   * Begins a backup: what was changed so far is set aside for it, what changes from now on is for the next one. A change
   * that is under way counts for both.
   * @throws Fault NOT_PERMITTED when one is under way
   */
  begin(): void
  /** The first range at or after `from` that the backup must copy; undefined at the end. @throws Fault NOT_PERMITTED when none is under way */
  next(from: number): ChangedRange | undefined
  /** Ends the backup. Where it failed, what was set aside for it is for the next one again. @throws Fault NOT_PERMITTED */
  end(succeeded: boolean): void
}
