/** The vhd driver: fixed, dynamic and differencing images, `vhd:PATH`. */

import { parentFolders, PARENTS_SETTING } from '../backing-chain.ts'
import { choiceSetting, integerSetting, type Driver } from '../driver.ts'
import { openVhd } from './open-vhd.ts'

const MOST_THREADS = 16
const USUAL_THREADS = 4

export const vhd: Driver = {
  name: 'vhd',
  kind: 'backend',
  target: 'path of a VHD image',
  keys: {
    parents: PARENTS_SETTING,
    discard: { meaning: 'give trimmed and zeroed space back, or keep it', values: 'unmap|ignore' },
    threads: {
      meaning: 'most I/O threads of this disk',
      values: `1-${MOST_THREADS}, ${USUAL_THREADS} unless given`,
    },
  },
  open: (stage, _below, context) =>
    openVhd(stage.target, {
      readOnly: context.readOnly,
      logger: context.logger,
      parents: parentFolders(stage.settings.get('parents')),
      discard: choiceSetting(stage, 'discard', ['unmap', 'ignore'], 'unmap'),
      threads: integerSetting(stage, 'threads', { least: 1, most: MOST_THREADS }, USUAL_THREADS),
    }),
}
