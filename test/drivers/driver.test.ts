import t from 'tap'

import {
  booleanSetting,
  choiceSetting,
  deviceBelow,
  fractionSetting,
  integerSetting,
  sizeSetting,
  type Stage,
} from '../../drivers/driver.ts'

function stage(value?: string): Stage {
  const settings = new Map(value === undefined ? [] : [['key', value]])
  return { driver: 'aio', target: '/x', settings }
}

const range = { least: 2, most: 64 }

void t.test('a setting that is not given has its default', (t) => {
  t.equal(booleanSetting(stage(), 'key', true), true)
  t.equal(integerSetting(stage(), 'key', range, 7), 7)
  t.equal(sizeSetting(stage(), 'key', range, 9), 9)
  t.equal(fractionSetting(stage(), 'key', 0.5), 0.5)
  t.equal(choiceSetting(stage(), 'key', ['a', 'b'], 'b'), 'b')
  t.end()
})

void t.test('settings are read as their types', (t) => {
  for (const text of ['on', 'true', 'YES', '1', '']) t.ok(booleanSetting(stage(text), 'key', false))
  for (const text of ['off', 'false', 'No', '0']) t.notOk(booleanSetting(stage(text), 'key', true))
  t.equal(integerSetting(stage('2'), 'key', range, 7), 2)
  t.equal(integerSetting(stage('64'), 'key', range, 7), 64)
  t.equal(sizeSetting(stage('1K'), 'key', { least: 0, most: 4096 }, 9), 1024)
  for (const text of ['0', '1', '0.25', '.5']) {
    t.equal(fractionSetting(stage(text), 'key', 0.9), Number(text))
  }
  t.equal(choiceSetting(stage('a'), 'key', ['a', 'b'], 'b'), 'a')
  t.end()
})

void t.test('a wrong value is refused with the values that are right', (t) => {
  const refusal = (says: RegExp) => ({ name: 'Fault', code: 'INVALID', message: says })
  t.throws(() => booleanSetting(stage('maybe'), 'key', true), refusal(/key=maybe.*on or off/))
  for (const text of ['1', '65', '-2', '2.5', '1e1', '0x10', 'many', '']) {
    t.throws(() => integerSetting(stage(text), 'key', range, 7), refusal(/from 2 to 64/))
  }
  for (const text of ['1', '65', 'big']) {
    t.throws(() => sizeSetting(stage(text), 'key', range, 7), refusal(/from 2 B to 64 B/))
  }
  for (const text of ['1.1', '-0.1', '1e-3', '', 'half']) {
    t.throws(() => fractionSetting(stage(text), 'key', 1), refusal(/from 0 to 1/))
  }
  t.throws(() => choiceSetting(stage('c'), 'key', ['a', 'b'], 'b'), refusal(/a or b/))
  t.end()
})

void t.test('a layer without a device below it is a bug', (t) => {
  t.throws(() => deviceBelow(undefined), { name: 'AssertionFailure' })
  t.end()
})
