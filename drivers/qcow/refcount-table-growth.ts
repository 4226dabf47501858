/**
 * A larger refcount table: written beside the old one together with the blocks that describe it, then named by one
 * atomic write of the header. Whenever the power fails, the header names a table that is whole.
 */

import { Fault } from '../../core/fault.ts'
import { writeRefcount } from '../../formats/qcow/refcounts.ts'
import { MOST_REFCOUNT_TABLE_BYTES, roundUp } from '../../formats/qcow/layout.ts'
import type { HeaderSector } from './header-sector.ts'
import { RefcountBlock, type RefcountBlocks } from './refcount-blocks.ts'

/** Clusters that hold nothing any more, when the header on stable storage no longer names them. */
interface Unused {
  readonly at: number
  readonly clusters: number
}

/**
 * @param first the block that the table has no entry for; everything from its first cluster on is free
 * @returns where the old table was
 */
export async function growRefcountTable(
  blocks: RefcountBlocks,
  header: HeaderSector,
  first: number,
): Promise<Unused> {
  const { file, layout } = blocks
  const { clusterSize, refcountsPerBlock } = layout
  const old: Unused = {
    at: blocks.tableAt,
    clusters: (blocks.table.length * 8) / clusterSize,
  }
  const size = tableSize(first, clusterSize, refcountsPerBlock, file.path)
  const at = first * refcountsPerBlock * clusterSize
  const tableAt = at + size.blocks * clusterSize
  const end = tableAt + size.clusters * clusterSize
  await file.ensure(end)
  await blocks.writeNew()
  const table = new Float64Array((size.clusters * clusterSize) / 8)
  table.set(blocks.table)
  const added = Array.from({ length: size.blocks }, (_, each) => {
    table[first + each] = at + each * clusterSize
    const bytes = Buffer.alloc(clusterSize)
    const used = size.blocks + size.clusters - each * refcountsPerBlock
    for (let within = 0; within < Math.min(used, refcountsPerBlock); within += 1)
      writeRefcount(bytes, layout.refcountBits, within, 1)
    return new RefcountBlock(first + each, at + each * clusterSize, bytes)
  })
  for (const block of added) await file.write(block.bytes, block.at)
  const bytes = Buffer.alloc(table.length * 8)
  for (const [index, block] of table.entries()) bytes.writeBigUInt64BE(BigInt(block), index * 8)
  await file.write(bytes, tableAt)
  await header.write({ refcountTable: { at: tableAt, clusters: size.clusters } })
  blocks.moveTable(table, tableAt, added)
  return old
}

/** Half as large again as needed; its own clusters and blocks included. */
function tableSize(
  first: number,
  clusterSize: number,
  refcountsPerBlock: number,
  path: string,
): { readonly blocks: number; readonly clusters: number } {
  const most = Math.max(MOST_REFCOUNT_TABLE_BYTES, clusterSize)
  let blocks = 1
  for (;;) {
    const wanted = Math.ceil((first + blocks) * 1.5) * 8
    const bytes = roundUp(Math.min(Math.max(wanted, (first + blocks) * 8), most), clusterSize)
    if ((first + blocks) * 8 > bytes) {
      throw new Fault('NO_SPACE', 'the refcount table cannot become larger than 8 MiB', {
        where: path,
        remedy: 'convert the image to one with larger clusters',
      })
    }
    const clusters = bytes / clusterSize
    if (blocks + clusters <= blocks * refcountsPerBlock) return { blocks, clusters }
    blocks += 1
  }
}
