/** What would be lost, or said wrongly, where disks come, grow and go beside the checkpoints. */

import type { Mutant } from './mutant.ts'

const SECONDARY = {
  test: 'test/replication/crash-points/disk-changes.test.ts',
  caughtBy: 'a secondary has one checkpoint of the disks that are left, whatever crash comes',
}

const GROWTH = {
  test: 'test/ramdisk/growth.test.ts',
  caughtBy: 'from 20480 to 16777216 bytes, with an epoch pending',
}

const EXCHANGE = 'test/replication/switchover-disks.test.ts'

export const DISK_CHANGES: readonly Mutant[] = [
  {
    of: '2',
    defect: 'the journal gives up what a disk that leaves has still to read',
    file: 'replication/group-disks.ts',
    from: 'const release = secondary.log.keep()',
    to: 'const release = (): void => undefined',
    ...SECONDARY,
  },
  {
    of: '2',
    defect: 'a disk has left before its image has what was being committed',
    file: 'replication/group-disks.ts',
    from: '      await secondary.log.quiet()\n      await passive.layers.idle()\n',
    to: '',
    ...SECONDARY,
  },
  {
    of: '2',
    defect: 'the size of a disk is remembered before its image has it',
    file: 'replication/group-disks.ts',
    from: '      await image.flush()\n',
    to: '',
    ...SECONDARY,
  },
  {
    of: '15',
    defect: 'the map of a disk that left comes back with a crash',
    file: 'replication/regions/file-regions.ts',
    from: '    await files.remove(path)\n    await files.syncNames(folder)\n',
    to: '    await files.remove(path)\n',
    ...SECONDARY,
  },
  {
    of: '15',
    defect: 'what a disk has gained is taken to be unchanged',
    file: 'replication/regions/file-regions.ts',
    from: 'grown[region >> 3] = (grown[region >> 3] ?? 0) | (1 << (region & 7))',
    to: 'void region',
    test: 'test/replication/regions/file-regions.test.ts',
    caughtBy: 'the map of a disk that has grown keeps what it knew, and has the rest marked',
  },
  {
    of: '1',
    defect: 'epochs that are being received stay as small as their disk was',
    file: 'ramdisk/received-epochs.ts',
    from: 'for (const layer of this.layers) layer.grow(diskSize)\n',
    to: '',
    ...GROWTH,
  },
  {
    of: '1',
    defect: 'the index of a spilled epoch has no room for what a disk has gained',
    file: 'ramdisk/spilled-epoch.ts',
    from: 'this.#tree.grow(sectorsTo(diskSize))\n',
    to: '',
    ...GROWTH,
  },
  {
    of: '21',
    defect: 'the roles are exchanged while the other side gets a copy of a disk',
    file: 'replication/switchover.ts',
    from: 'machine.lacking',
    to: 'machine.apart',
    test: EXCHANGE,
    caughtBy:
      'a role is not exchanged while the other side gets a copy of a disk that it alone had removed',
  },
  {
    of: '21',
    defect: 'a copy begins between the last checkpoint and the handover',
    file: 'replication/primary-side.ts',
    from: 'if (this.machine.copyHasRoom && !this.isLeaving) return undefined',
    to: 'if (this.machine.copyHasRoom) return undefined',
    test: EXCHANGE,
    caughtBy: 'no copy begins between the last checkpoint and the handover',
  },
  {
    of: '19',
    defect: 'what a disk has gained is not handed over',
    file: 'replication/replica-group.ts',
    from: 'await this.#disks.grown(timeoutMs)\n',
    to: '',
    test: EXCHANGE,
    caughtBy: 'an exchange waits for a disk that grows, and for what it has gained',
  },
  {
    of: '21',
    defect: 'a disk outgrows the other side when the role changes meanwhile',
    file: 'replication/group-disks.ts',
    from: 'while (asked !== this.#options.primary())',
    to: 'while (false as boolean)',
    test: EXCHANGE,
    caughtBy:
      'a disk does not outgrow the other side where the role was given up and taken back meanwhile',
  },
]
