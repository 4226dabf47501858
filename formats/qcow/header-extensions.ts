/** The extensions that follow a QCOW2 header: type, length, data padded to 8 bytes (qcow2.rst, "Header extensions"). */

import { Fault } from '../../core/fault.ts'
import { roundUp } from './layout.ts'

export const EXTENSION = {
  end: 0x0000_0000,
  backingFormat: 0xe279_2aca,
  featureNames: 0x6803_f857,
  bitmaps: 0x2385_2875,
  encryption: 0x0537_be77,
  dataFile: 0x4441_5441,
} as const

export interface HeaderExtension {
  readonly type: number
  readonly data: Buffer
  /** Byte offset of `data` in the image file. */
  readonly at: number
}

/**
 * @param area from the end of the header to the name of the backing image or the end of the first cluster
 * @param areaAt the area's byte offset in the image file
 * @throws Fault INVALID when an extension does not end within the area, or one that must be single is there twice
 */
export function parseExtensions(area: Buffer, areaAt: number): HeaderExtension[] {
  const extensions: HeaderExtension[] = []
  for (let at = 0; at + 8 <= area.length;) {
    const type = area.readUInt32BE(at)
    const length = area.readUInt32BE(at + 4)
    if (type === EXTENSION.end) break
    const dataAt = at + 8
    if (dataAt + length > area.length)
      throw new Fault('INVALID', `header extension 0x${type.toString(16)} is too long`)
    if (extensions.some((other) => other.type === type))
      throw new Fault('INVALID', `header extension 0x${type.toString(16)} is there twice`)
    const data = Buffer.from(area.subarray(dataAt, dataAt + length))
    extensions.push({ type, data, at: areaAt + dataAt })
    at = dataAt + roundUp(length, 8)
  }
  return extensions
}

/** The extension as it is stored. */
export function extensionBytes(type: number, data: Buffer): Buffer {
  const bytes = Buffer.alloc(8 + roundUp(data.length, 8))
  bytes.writeUInt32BE(type, 0)
  bytes.writeUInt32BE(data.length, 4)
  data.copy(bytes, 8)
  return bytes
}

/** A name in an image: UTF-8, not empty, without zero bytes. */
export function textOf(data: Buffer, what: string): string {
  const text = data.toString('utf8')
  if (text === '' || text.includes('\0') || !Buffer.from(text, 'utf8').equals(data))
    throw new Fault('INVALID', `${what} is no text`)
  return text
}
