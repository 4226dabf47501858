/** What drivers are opened with in tests. */

import { SILENT } from '../../core/logger.ts'
import type { OpenContext } from '../../drivers/driver.ts'

export function openContext(readOnly = false): OpenContext {
  return {
    exportName: 'disk',
    readOnly,
    logger: SILENT,
    attachReplica: () => Promise.reject(new Error('no test here replicates')),
  }
}
