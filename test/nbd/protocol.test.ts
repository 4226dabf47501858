import t from 'tap'

import { FAULT_CODES, type FaultCode } from '../../core/fault.ts'
import {
  NBD_EINVAL,
  NBD_EIO,
  NBD_ENOMEM,
  NBD_ENOSPC,
  NBD_ENOTSUP,
  NBD_EOVERFLOW,
  NBD_EPERM,
  NBD_ESHUTDOWN,
  errnoOf,
  faultCodeOf,
  readOffset,
  writeOffset,
} from '../../nbd/protocol.ts'

const WIRE_ERRORS = [
  NBD_EPERM,
  NBD_EIO,
  NBD_ENOMEM,
  NBD_EINVAL,
  NBD_ENOSPC,
  NBD_EOVERFLOW,
  NBD_ENOTSUP,
  NBD_ESHUTDOWN,
]

void t.test('the error numbers are the specification’s', (t) => {
  t.strictSame(WIRE_ERRORS, [1, 5, 12, 22, 28, 75, 95, 108])
  t.end()
})

void t.test('every fault has one of the protocol error numbers', (t) => {
  for (const code of Object.keys(FAULT_CODES) as FaultCode[])
    t.ok(WIRE_ERRORS.includes(errnoOf(code)), code)
  t.end()
})

void t.test('an error keeps its meaning across the wire', (t) => {
  const codes = [
    'NOT_PERMITTED',
    'IO',
    'NO_MEMORY',
    'INVALID',
    'NO_SPACE',
    'NOT_SUPPORTED',
  ] as const
  for (const code of codes) t.equal(faultCodeOf(errnoOf(code)), code)
  t.equal(faultCodeOf(errnoOf('SHUTDOWN')), 'SHUTDOWN')
  t.equal(faultCodeOf(4711), 'INVALID', 'an unknown number counts as EINVAL')
  t.end()
})

void t.test('offsets are 64-bit, and saturate where a double ends', (t) => {
  const bytes = Buffer.alloc(8)
  for (const value of [0, 1, 2 ** 32 - 1, 2 ** 32, 2 ** 40 + 5, Number.MAX_SAFE_INTEGER]) {
    writeOffset(bytes, value, 0)
    t.equal(bytes.readBigUInt64BE(0), BigInt(value))
    t.equal(readOffset(bytes, 0), value)
  }
  bytes.fill(0xff)
  t.equal(readOffset(bytes, 0), Number.MAX_SAFE_INTEGER)
  t.end()
})
