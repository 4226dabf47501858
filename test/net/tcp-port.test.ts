import net from 'node:net'

import t from 'tap'

import { listenOnPort } from '../../net/tcp-port.ts'

const LOOPBACK = '127.0.0.1'

void t.test('a port of 0 is any free one, and the answer names it', async (t) => {
  const server = net.createServer()
  t.teardown(() => server.close())
  const bound = await listenOnPort(server, { host: LOOPBACK, port: 0 }, 'test port')
  t.equal(bound.host, LOOPBACK)
  t.ok(bound.port > 0)
})

void t.test('a port in use is refused and named; its server lives on', async (t) => {
  const first = net.createServer()
  t.teardown(() => first.close())
  const bound = await listenOnPort(first, { host: LOOPBACK, port: 0 }, 'test port')
  await t.rejects(listenOnPort(net.createServer(), bound, 'test port'), {
    code: 'IN_USE',
    message: /the test port is in use/,
    where: `${LOOPBACK}:${bound.port}`,
    remedy: /another port/,
  })
  t.ok(first.listening)
})

void t.test('an address of another machine is refused and named', async (t) => {
  const foreign = { host: '192.0.2.1', port: 1 }
  await t.rejects(listenOnPort(net.createServer(), foreign, 'test port'), {
    code: 'IO',
    message: /cannot listen on the test port/,
    where: '192.0.2.1:1',
  })
})
