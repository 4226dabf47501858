/** The qcow driver: QCOW images of versions 1, 2 and 3, `qcow:PATH`. */

import { GiB, KiB } from '../../core/units.ts'
import { parentFolders, PARENTS_SETTING } from '../backing-chain.ts'
import { choiceSetting, integerSetting, sizeSetting, type Driver } from '../driver.ts'
import { openQcow } from './open-qcow.ts'
import { USUAL_CACHE } from './open-qcow2.ts'

const MOST_THREADS = 16
const USUAL_THREADS = 4

export const qcow: Driver = {
  name: 'qcow',
  kind: 'backend',
  target: 'path of a QCOW or QCOW2 image',
  keys: {
    parents: PARENTS_SETTING,
    cache: {
      meaning: 'the most memory for tables of this image, and of each of its parents',
      values: 'a size, 32M unless given',
    },
    discard: { meaning: 'give trimmed and zeroed space back, or keep it', values: 'unmap|ignore' },
    threads: {
      meaning: 'most I/O threads of this disk',
      values: `1-${MOST_THREADS}, ${USUAL_THREADS} unless given`,
    },
  },
  open: (stage, _below, context) =>
    openQcow(stage.target, {
      readOnly: context.readOnly,
      logger: context.logger,
      parents: parentFolders(stage.settings.get('parents')),
      cache: sizeSetting(stage, 'cache', { least: 64 * KiB, most: 16 * GiB }, USUAL_CACHE),
      discard: choiceSetting(stage, 'discard', ['unmap', 'ignore'], 'unmap'),
      threads: integerSetting(stage, 'threads', { least: 1, most: MOST_THREADS }, USUAL_THREADS),
    }),
}
