/**
 * Binary structures as tables: each field with its offset as the specification prints it, read and written by the same
 * declaration. All numbers are big-endian, as VHD and QCOW have them.
 *
 * Invariants:
 *  - The fields of a structure tile its size: no gap, no overlap. This is asserted when the program loads.
 *  - read(write(value)) is `value`, and write(read(bytes)) is `bytes`: nothing of a structure is lost by rewriting it.
 *  - A 64-bit number is a safe integer as soon as it has been read, or the structure is refused.
 */

import { assert } from '../core/assert.ts'
import { Fault } from '../core/fault.ts'

/** A piece of a structure that occupies `size` bytes. */
export interface Field<Value> {
  readonly size: number
  /** @throws Fault INVALID when the bytes stand for no value of this field */
  read(from: Buffer, at: number): Value
  write(into: Buffer, at: number, value: Value): void
}

type Layout = Readonly<Record<string, readonly [offset: number, field: Field<unknown>]>>

type ValueOfLayout<L extends Layout> = {
  readonly [Name in keyof L]: L[Name][1] extends Field<infer Value> ? Value : never
}

/** What a structure reads as: `type Footer = ValueOf<typeof FOOTER>`. */
export type ValueOf<S> = S extends Field<infer Value> ? Value : never

/** A structure is a field as well, so that structures nest. */
export class Structure<L extends Layout> implements Field<ValueOfLayout<L>> {
  readonly name: string
  readonly size: number
  readonly #layout: L

  constructor(name: string, size: number, layout: L) {
    let end = 0
    for (const [field, [offset, { size: length }]] of Object.entries(layout)) {
      assert(offset === end, `${name}: ${field} begins at ${end}, where the field before it ends`)
      end += length
    }
    assert(end === size, `${name}: the fields fill ${size} bytes, not ${end}`)
    this.name = name
    this.size = size
    this.#layout = layout
  }

  /** @throws Fault INVALID that names the field which stands for nothing */
  read(from: Buffer, at = 0): ValueOfLayout<L> {
    assert(at + this.size <= from.length, `the bytes hold a whole ${this.name}`)
    const value: Record<string, unknown> = {}
    for (const [name, [offset, field]] of Object.entries(this.#layout)) {
      try {
        value[name] = field.read(from, at + offset)
      } catch (error) {
        if (!(error instanceof Fault)) throw error
        throw new Fault('INVALID', `${this.name}: ${name}: ${error.what}`, { cause: error })
      }
    }
    return value as ValueOfLayout<L>
  }

  write(into: Buffer, at: number, value: ValueOfLayout<L>): void {
    assert(at + this.size <= into.length, `there is room for a whole ${this.name}`)
    for (const [name, [offset, field]] of Object.entries(this.#layout))
      field.write(into, at + offset, value[name])
  }

  /** The structure's bytes, alone. */
  bytesOf(value: ValueOfLayout<L>): Buffer {
    const bytes = Buffer.alloc(this.size)
    this.write(bytes, 0, value)
    return bytes
  }

  /** Where a field begins. */
  offsetOf(name: keyof L): number {
    const place = this.#layout[name]
    assert(place !== undefined, 'the field is declared')
    return place[0]
  }
}

/** Declares a structure of `size` bytes: names, each with its offset and kind, in ascending order. */
export function structure<const L extends Layout>(
  name: string,
  size: number,
  layout: L,
): Structure<L> {
  return new Structure(name, size, layout)
}

export const u8: Field<number> = {
  size: 1,
  read: (from, at) => from.readUInt8(at),
  write: (into, at, value) => into.writeUInt8(value, at),
}

export const u16: Field<number> = {
  size: 2,
  read: (from, at) => from.readUInt16BE(at),
  write: (into, at, value) => into.writeUInt16BE(value, at),
}

export const u32: Field<number> = {
  size: 4,
  read: (from, at) => from.readUInt32BE(at),
  write: (into, at, value) => into.writeUInt32BE(value, at),
}

/** A size or an offset. Beyond 2^53 there is nothing on any disk: such a number is refused. */
export const u64: Field<number> = {
  size: 8,
  read: (from, at) => {
    const value = from.readBigUInt64BE(at)
    if (value > BigInt(Number.MAX_SAFE_INTEGER)) {
      throw new Fault('INVALID', `0x${value.toString(16)} is no size or offset of a real disk`)
    }
    return Number(value)
  },
  write: (into, at, value) => {
    assert(Number.isSafeInteger(value) && value >= 0, 'a size or offset is a safe integer')
    into.writeBigUInt64BE(BigInt(value), at)
  },
}

/** 64 bits whose value is not calculated with, such as feature bits. */
export const word64: Field<bigint> = {
  size: 8,
  read: (from, at) => from.readBigUInt64BE(at),
  write: (into, at, value) => void into.writeBigUInt64BE(value, at),
}

/** Opaque bytes: identifiers, and reserved space that is to be kept. */
export function bytes(size: number): Field<Buffer> {
  return {
    size,
    read: (from, at) => Buffer.from(from.subarray(at, at + size)),
    write: (into, at, value) => {
      assert(value.length === size, `the field has ${size} bytes`)
      value.copy(into, at)
    },
  }
}

/** A word of exactly `size` characters, one byte each, such as a magic; every byte value is kept. */
export function letters(size: number): Field<string> {
  return {
    size,
    read: (from, at) => from.toString('latin1', at, at + size),
    write: (into, at, value) => {
      assert(value.length === size, `the field has ${size} characters`)
      into.write(value, at, 'latin1')
    },
  }
}

/** `count` fields of one kind behind each other. */
export function times<Value>(count: number, field: Field<Value>): Field<readonly Value[]> {
  return {
    size: count * field.size,
    read: (from, at) =>
      Array.from({ length: count }, (_, index) => field.read(from, at + index * field.size)),
    write: (into, at, values) => {
      assert(values.length === count, `the field has ${count} entries`)
      for (const [index, value] of values.entries())
        field.write(into, at + index * field.size, value)
    },
  }
}
