/** The old wire, written from its C source and independent of colotap's own code. */

/** wreq, as three writes of the old primary leave it in the stream. */
export function oldWrite(sector: number, data: Buffer): Buffer {
  const header = Buffer.alloc(12)
  header.writeUInt32LE(data.length / 512, 0)
  header.writeBigUInt64LE(BigInt(sector), 4)
  return Buffer.concat([Buffer.from('wreq'), header, data])
}

export function oldSubmit(): Buffer {
  return Buffer.from('sreq')
}

export function oldCommit(): Buffer {
  return Buffer.from('creq')
}

/** `bytes` in pieces of these lengths, over and over. */
export function cutAt(bytes: Buffer, lengths: readonly number[]): Buffer[] {
  const chunks: Buffer[] = []
  let at = 0
  while (at < bytes.length) {
    const length = lengths[chunks.length % lengths.length] ?? bytes.length
    chunks.push(bytes.subarray(at, at + length))
    at += length
  }
  return chunks
}

/**
 * The secondary of block-remus.c: blocking reads become a state machine here, the rest is as it is there. A request of more than
 * 4096 bytes is not drained; an op that it does not know is skipped; the epoch counts as done before it is on the disk.
 */
export class OldSecondary {
  readonly disk: Buffer
  /** Complaints that the old code would log. */
  readonly complaints: string[] = []
  commits = 0
  /** Writes of the epoch, in order. */
  #ramdisk: { sector: number; data: Buffer }[] = []
  #stream: Buffer = Buffer.alloc(0)
  /** Sizes of the writes that came. */
  readonly sizes: number[] = []

  constructor(size: number) {
    this.disk = Buffer.alloc(size)
  }

  /** @returns what it answers */
  receive(chunk: Buffer): Buffer {
    this.#stream = Buffer.concat([this.#stream, chunk])
    let answers = ''
    for (;;) {
      const op = this.#stream.toString('latin1', 0, 4)
      if (op.length < 4) break
      if (op === 'wreq') {
        if (this.#stream.length < 16) break
        const length = this.#stream.readUInt32LE(4) * 512
        const sector = Number(this.#stream.readBigUInt64LE(8))
        if (length > 4096) {
          this.complaints.push(`write request too large: ${length}/4096`)
          this.#stream = this.#stream.subarray(16)
          continue
        }
        if (this.#stream.length < 16 + length) break
        this.sizes.push(length)
        this.#ramdisk.push({ sector, data: this.#stream.subarray(16, 16 + length) })
        this.#stream = this.#stream.subarray(16 + length)
        continue
      }
      this.#stream = this.#stream.subarray(4)
      if (op === 'creq') {
        this.#flush()
        answers += 'done'
      } else if (op !== 'sreq') this.complaints.push(`unknown request received: ${op}`)
    }
    return Buffer.from(answers)
  }

  #flush(): void {
    for (const { sector, data } of this.#ramdisk) data.copy(this.disk, sector * 512)
    this.#ramdisk = []
    this.commits += 1
  }
}
