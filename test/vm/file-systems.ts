/** The file systems that guests make, with the programs that know whether one is whole. */

export interface FileSystem {
  readonly name: string
  /** Shell: loads what the kernel needs, before anything else. */
  readonly load: string
  /** Shell: makes one on the device. */
  make(device: string): string
  /** Shell: fails when the one on the device, which is not mounted, has any defect. */
  check(device: string): string
}

export const EXT4: FileSystem = {
  name: 'ext4',
  load: ':',
  make: (device) => `mkfs.ext4 -q ${device}`,
  check: (device) => `e2fsck -fn ${device}`,
}

export const XFS: FileSystem = {
  name: 'xfs',
  load: 'load xfs',
  make: (device) => `mkfs.xfs -q ${device}`,
  check: (device) => `xfs_repair -n ${device}`,
}

/**
 * Shell: in the current directory, a tree of files of random content, from empty to several MiB, and SUMS, the checksums
 * of all.
 */
export const PLANT_TREE = `
  for folder in a a/b a/b/c d; do
    mkdir -p $folder
    for size in 0 1 511 4096 70000; do head -c $size /dev/urandom >$folder/$size; done
  done
  head -c 6000000 /dev/urandom >large
  ln -s large link
  find . -type f ! -name SUMS | sort | xargs sha256sum >SUMS
`

/** Shell: fails unless the tree is as it was planted. */
export const VERIFY_TREE = `
  [ $(wc -l <SUMS) = 21 ]
  sha256sum -c -s SUMS
  cmp large link
`
