import t from 'tap'

import { SILENT } from '../../../core/logger.ts'
import { nbd } from '../../../drivers/nbd/nbd.ts'
import { openContext } from '../open-context.ts'

const open = (
  target: string,
  settings: Record<string, string> = {},
  insecure = false,
): Promise<unknown> =>
  nbd.open({ driver: 'nbd', target, settings: new Map(Object.entries(settings)) }, undefined, {
    ...openContext(),
    logger: SILENT,
    insecure,
  })

void t.test(
  'a server beyond this machine is used with TLS only, or against all advice',
  async (t) => {
    const refusal = { code: 'NOT_PERMITTED', message: /without encryption.*tls-creds=.*--insecure/ }
    await t.rejects(open('192.0.2.7:10809'), refusal)
    await t.rejects(open('storage'), refusal)
    await t.rejects(open('[2001:db8::7]'), refusal)
    // Nobody is there, but it is tried.
    await t.rejects(open('[::ffff:127.0.0.1]:1', {}, true), { code: 'LINK_LOST' })
    await t.rejects(open('127.0.0.1:1'), { code: 'LINK_LOST' })
  },
)

void t.test('credentials that contradict each other, or cannot be used, are refused', async (t) => {
  const both = { 'tls-creds': '/a', 'tls-psk': '/b' }
  await t.rejects(open('storage', both), { code: 'INVALID' })
  await t.rejects(open('storage', { 'tls-psk': `${t.testdir()}/none` }), {
    name: 'Fault',
    message: /none/,
  })
  await t.rejects(open('unix:/run/s', { 'tls-creds': '/a' }), {
    code: 'INVALID',
    message: /tls-name=/,
  })
})
