import t from 'tap'
import { assert, AssertionFailure, unreachable } from '../../core/assert.ts'
import { asFault, Fault, FAULT_CODES } from '../../core/fault.ts'

void t.test('a fault says what, where and what to do, on one line', (t) => {
  const fault = new Fault('IO', 'reading\nfailed', { where: '/dev/sdb', remedy: 'replace it' })
  t.equal(fault.message, 'reading failed: /dev/sdb (replace it)')
  t.match(fault, { code: 'IO', where: '/dev/sdb', remedy: 'replace it', name: 'Fault' })
  t.equal(new Fault('IO', 'reading failed').message, 'reading failed')
  t.notOk('cause' in new Fault('IO', 'reading failed'))
  t.end()
})

void t.test('an error becomes a fault that keeps it as its cause', (t) => {
  const error = new Error('EIO')
  const fault = asFault(error, 'IO', 'reading failed', { where: 'disk' })
  t.equal(fault.message, 'reading failed: EIO: disk')
  t.equal(fault.cause, error)
  t.equal(asFault('odd', 'IO', 'reading failed').message, 'reading failed: odd')
  t.end()
})

void t.test('a fault stays the fault that it is', (t) => {
  const fault = new Fault('NO_SPACE', 'full')
  t.equal(asFault(fault, 'IO', 'reading failed'), fault)
  t.end()
})

void t.test('every code has its meaning', (t) => {
  for (const meaning of Object.values(FAULT_CODES)) t.match(meaning, /^[a-z].*[a-z]$/)
  t.end()
})

void t.test('a claim that is false stops as a bug, not as a fault', (t) => {
  t.doesNotThrow(() => assert(true, 'fine'))
  t.throws(() => assert(false, 'fine'), new AssertionFailure('fine'))
  t.throws(() => unreachable({ odd: 1 } as never, 'no such case'), /no such case: {"odd":1}/)
  t.end()
})
