/** Errors of the operating system, as faults that say what they mean for an image and what to do. */

import { constants } from 'node:os'

import { Fault, type FaultCode } from '../../core/fault.ts'

interface Meaning {
  readonly code: FaultCode
  readonly what: string
  readonly remedy?: string
}

const MEANINGS: Readonly<Record<string, Meaning>> = {
  ENOSPC: {
    code: 'NO_SPACE',
    what: 'the file system or device is full',
    remedy: 'free or add space, then repeat',
  },
  EDQUOT: {
    code: 'NO_SPACE',
    what: 'the disk quota is used up',
    remedy: 'raise the quota or free space',
  },
  EFBIG: {
    code: 'NO_SPACE',
    what: 'the file would become larger than the file system or a limit of this process allows',
    remedy: 'check ulimit -f and the limits of the file system',
  },
  ENOMEM: { code: 'NO_MEMORY', what: 'the system is out of memory' },
  EACCES: {
    code: 'NOT_PERMITTED',
    what: 'permission denied',
    remedy: 'give the user that runs colotap access to the image',
  },
  EPERM: {
    code: 'NOT_PERMITTED',
    what: 'the system does not permit this',
    remedy: 'check immutable or append-only attributes (lsattr) and security modules',
  },
  EROFS: {
    code: 'NOT_PERMITTED',
    what: 'the file system is read-only',
    remedy: 'remount it read-write, or serve with --read-only',
  },
  EOPNOTSUPP: { code: 'NOT_SUPPORTED', what: 'the file system cannot do this' },
  EMFILE: {
    code: 'NO_MEMORY',
    what: 'this process has too many open files',
    remedy: 'raise ulimit -n',
  },
  EIO: {
    code: 'IO',
    what: 'the storage reported an I/O error',
    remedy: 'see the kernel log, and check the device',
  },
}

/** Names by number. Where a number has two names, the later entry wins, and the ones above are the later ones. */
const NAMES: ReadonlyMap<number, string> = new Map(
  [...Object.keys(constants.errno), ...Object.keys(MEANINGS)].map((name) => [numberOf(name), name]),
)

function numberOf(name: string): number {
  const numbers: Readonly<Record<string, number>> = constants.errno
  return numbers[name] ?? 0
}

/** The fault for a negated errno. `doing` is a verb phrase: `write 4096 bytes`. */
export function systemFault(negated: number, doing: string, where: string): Fault {
  const name = NAMES.get(-negated) ?? `error ${-negated}`
  const meaning = MEANINGS[name]
  const what = `cannot ${doing}: ${meaning?.what ?? 'the system call failed'} (${name})`
  const remedy = meaning?.remedy
  return new Fault(meaning?.code ?? 'IO', what, {
    where,
    ...(remedy === undefined ? {} : { remedy }),
  })
}
