/** A disk with a cache that a crash empties: what was not flushed is gone, and the next one begins with what was. */

import { RecordingDevice } from '../recording-device.ts'

export class VolatileDisk extends RecordingDevice {
  durable: Buffer

  constructor(content: Buffer) {
    super({ size: content.length, later: true })
    this.bytes = Buffer.from(content)
    this.durable = Buffer.from(content)
  }

  override write(from: Buffer, at: number, flags: number): void | Promise<void> {
    const written = super.write(from, at, flags)
    if ((flags & 1) === 0) return written
    return Promise.resolve(written).then(
      () => void this.bytes.copy(this.durable, at, at, at + from.length),
    )
  }

  override flush(): void | Promise<void> {
    return Promise.resolve(super.flush()).then(() => void this.bytes.copy(this.durable))
  }

  /** What is left of it after a crash. */
  successor(): VolatileDisk {
    return new VolatileDisk(this.durable)
  }
}
