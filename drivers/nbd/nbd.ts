/** The nbd driver: a disk that another NBD server keeps, `nbd:unix:PATH?export=NAME` or `nbd:HOST:PORT?export=NAME`. */

import { GiB, MiB } from '../../core/units.ts'
import { formatListenAddress } from '../../nbd/address.ts'
import { NODE_TIMERS } from '../../replication/node-timers.ts'
import { integerSetting, sizeSetting, type Driver } from '../driver.ts'
import { NbdDevice } from './nbd-device.ts'
import { serverSecurity } from './server-security.ts'
import { Session } from './session.ts'
import { parseTarget } from './target.ts'

const MOST_CONNECTIONS = 16
const USUAL_CONNECTIONS = 4
const USUAL_DEADLINE_MS = 30_000
const USUAL_REPLAY = 64 * MiB
/** For one connection, however long requests may wait. */
const LONGEST_CONNECT_MS = 10_000

export const nbd: Driver = {
  name: 'nbd',
  kind: 'backend',
  target: 'unix:PATH, HOST:PORT or //HOST:PORT/EXPORT of an NBD server',
  keys: {
    export: { meaning: 'name of the export; without it the default one' },
    connections: {
      meaning: 'how many, where the server allows several',
      values: `1-${MOST_CONNECTIONS}, ${USUAL_CONNECTIONS} unless given`,
    },
    deadline: {
      meaning: 'milliseconds after which a request without an answer fails',
      values: `100-3600000, ${USUAL_DEADLINE_MS} unless given`,
    },
    replay: {
      meaning: 'most memory for writes that no flush has covered',
      values: `1M-64G, ${USUAL_REPLAY / MiB}M unless given`,
    },
    'tls-creds': { meaning: 'folder of X.509 files, by which both sides prove themselves' },
    'tls-name': { meaning: "name in the server's certificate, if it is not that of the target" },
    'tls-psk': { meaning: 'file of pre-shared keys, by which both sides prove themselves' },
    'tls-user': { meaning: 'user of that file, if it has several' },
  },
  open: async (stage, _below, { readOnly, logger, insecure = false }) => {
    const target = parseTarget(stage)
    const connections = integerSetting(
      stage,
      'connections',
      { least: 1, most: MOST_CONNECTIONS },
      USUAL_CONNECTIONS,
    )
    const deadlineMs = integerSetting(
      stage,
      'deadline',
      { least: 100, most: 3_600_000 },
      USUAL_DEADLINE_MS,
    )
    const replayBytes = sizeSetting(stage, 'replay', { least: MiB, most: 64 * GiB }, USUAL_REPLAY)
    const security = await serverSecurity(stage, target, { insecure, logger })
    const timeoutMs = Math.min(deadlineMs, LONGEST_CONNECT_MS)
    return NbdDevice.open({
      where: `${formatListenAddress(target.address)} export "${target.exportName}"`,
      readOnly,
      logger,
      deadlineMs,
      replayBytes,
      timers: NODE_TIMERS,
      nowMs: () => performance.now(),
      open: (signal) => Session.open({ target, connections, security, timeoutMs, signal }),
    })
  },
}
