/** What happens to the pipeline of an export. The names are the control protocol's and stay as they are (docs/control.md). */

export type ExportEvent =
  | {
      readonly event: 'EXPORT_PAUSED'
      readonly data: {
        readonly export: string
        /** Milliseconds from the first request that waits to the end of the pause at the latest. */
        readonly timeoutMs: number
      }
    }
  | {
      readonly event: 'EXPORT_RESUMED'
      readonly data: {
        readonly export: string
        readonly pipeline: string
        /** Microseconds for which requests waited. */
        readonly pauseUs: number
        /** Why it is served again by itself, or by another pipeline than was wanted; null where all is as commanded. */
        readonly reason: string | null
      }
    }
  | {
      readonly event: 'EXPORT_ERROR'
      readonly data: { readonly export: string; readonly error: string }
    }

export type ExportEventSink = (event: ExportEvent) => void
