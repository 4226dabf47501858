/** `colotap image commit`: what an image has goes into its parent. */

import { formatSize } from '../../core/units.ts'
import { commitImage } from '../../drivers/image-commit.ts'
import type { Subcommand } from '../command-line.ts'
import { progressOn } from '../progress.ts'
import { imageTarget, PARENTS_OPTION, parentsOf } from './target.ts'

export const commit: Subcommand = {
  name: 'image commit',
  summary: 'copy what an image has into its parent',
  positional: 'DRIVER:PATH',
  options: { parents: PARENTS_OPTION },
  notes:
    'The image itself stays as it is, and reads the same as before. Other images on top of the same parent do not: ' +
    'they become useless. Neither image may be in use.',
  async run(given, terminal) {
    const { format, path } = imageTarget(given.positional)
    const { parent, bytes } = await commitImage(
      format,
      path,
      parentsOf(given),
      progressOn(terminal, 'committing'),
    )
    terminal.print(`committed ${formatSize(bytes)} into ${parent}`)
  },
}
