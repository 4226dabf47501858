import t from 'tap'

import { KiB, SECTOR } from '../../../core/units.ts'
import { RecordedFile, survivePowerFailures } from '../../support/power-failures.ts'
import { inspectQcow2 } from '../../support/qcow-inspector.ts'
import { newQcow, openInMemory, type Variant } from './qcow-files.ts'

const SECTORS = 256
interface Case {
  readonly name: string
  readonly image: Variant
  /** The parent's sectors have version 1 to 9, in turns. */
  readonly parent?: boolean
}

const CASES: readonly Case[] = [
  { name: 'clusters of 4 KiB', image: {} },
  { name: 'clusters of 512 bytes', image: { clusterSize: 512 } },
  { name: 'few refcounts to a block', image: { clusterSize: 512, refcountBits: 64 } },
  { name: 'version 2', image: { version: 2 } },
  { name: 'extended L2 entries', image: { clusterSize: 16 * KiB, extended: true } },
  { name: 'an overlay', image: {}, parent: true },
  { name: 'an overlay of version 2', image: { version: 2 }, parent: true },
]

function parentContent(): Buffer {
  const content = Buffer.alloc(SECTORS * SECTOR)
  for (let sector = 0; sector < SECTORS; sector += 1)
    for (let word = 0; word < SECTOR; word += 4)
      content.writeUInt32LE(1 + (sector % 9), sector * SECTOR + word)
  return content
}

/** A power failure may leave leaks, and they stay: they are found by counting everything, which a server does not do. */
function inspect(image: Buffer): string | undefined {
  const { errors } = inspectQcow2(image)
  return errors.length === 0 ? undefined : errors.slice(0, 3).join('; ')
}

/** POWER_FAILURES=50 multiplies the number of workloads, as `npm test` does. */
const WORKLOADS = Number(process.env['POWER_FAILURES'] ?? 1)
const FIRST_SEED = Number(process.env['POWER_FAILURE_SEED'] ?? Date.now() % 1_000_000)

for (const { name, image, parent } of CASES) {
  void t.test(`power failures leave a sound image with ${name}`, async (t) => {
    const content = parent === true ? parentContent() : undefined
    let opened = 0
    for (let seed = FIRST_SEED; seed < FIRST_SEED + WORKLOADS; seed += 1)
      opened += await survivePowerFailures({
        seed,
        requests: WORKLOADS === 1 ? 24 : 40,
        samples: WORKLOADS === 1 ? 1 : 2,
        image: newQcow({ ...image, size: SECTORS * SECTOR }, parent === true),
        initial: Array.from({ length: SECTORS }, (_, sector) =>
          parent === true ? 1 + (sector % 9) : 0,
        ),
        open: (file) =>
          openInMemory(file, {
            parent: content === undefined ? undefined : new RecordedFile(content),
          }),
        inspect,
      })
    t.comment(`${opened} files from seeds ${FIRST_SEED} to ${FIRST_SEED + WORKLOADS - 1}`)
    t.ok(opened > 40)
  })
}
