/**
 * Exclusive use of an image: an advisory flock, held as long as the image is open, and respect for the locks of QEMU.
 *
 * Invariants:
 *  - At most one writer, or any number of readers, has an image open, whichever process (or this one, twice) tries.
 *  - The lock belongs to the open file: it ends with the file descriptor, also when the process is killed.
 *
 * Without native calls, the flock(1) of util-linux takes the lock on the descriptor that it inherits: the lock
 * belongs to the open file that both share, and so outlives flock(1).
 */

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { readFile } from 'node:fs/promises'

import { Fault } from '../../core/fault.ts'
import type { Logger } from '../../core/logger.ts'
import { systemFault } from './io-fault.ts'
import { errno, LOCK_EX, LOCK_NB, LOCK_SH, type Native } from './native.ts'

/**
 * QEMU marks what it does with an image by shared locks on single bytes: 100 + n where it uses permission n, 200 + n
 * where it lets nobody else use it. Of the permissions, reading is 0, writing 1, resizing 3.
 */
const QEMU_USES = 100
const QEMU_WITHHOLDS = 200
const QEMU_READ = 0
const QEMU_WRITE = 1
const QEMU_RESIZE = 3

export interface LockSubject {
  readonly fd: number
  readonly path: string
  readonly readOnly: boolean
  /** Identifies the image in /proc/locks. */
  readonly device: bigint
  readonly inode: bigint
}

/** One line of /proc/locks. */
export interface SystemLock {
  readonly kind: string
  readonly write: boolean
  /** -1 where the lock belongs to an open file rather than a process. */
  readonly pid: number
  /** `major:minor:inode` as the kernel prints it. */
  readonly file: string
  readonly start: number
  readonly end: number
}

/** @throws Fault IN_USE that names the holder where somebody else uses the image in a way that excludes this one. */
export async function lockImage(
  subject: LockSubject,
  native: Native | undefined,
  logger: Logger,
): Promise<void> {
  const operation = (subject.readOnly ? LOCK_SH : LOCK_EX) | LOCK_NB
  const result =
    native === undefined ? await flockByCommand(subject) : native.flock(subject.fd, operation)
  if (result === -errno('EWOULDBLOCK')) {
    const holders = await locksOn(subject)
    throw await inUse(
      subject,
      holders.find((lock) => lock.kind === 'FLOCK'),
    )
  }
  // Our own marks for QEMU are not set yet: what is there belongs to others.
  const foreign = (await locksOn(subject)).find((lock) => excludes(lock, subject.readOnly))
  if (foreign !== undefined) throw await inUse(subject, foreign)
  if (result === -errno('EOPNOTSUPP') || result === -errno('ENOLCK')) {
    logger.warn({ path: subject.path }, 'the file system has no locks: nothing keeps others away')
    return
  }
  if (result < 0) throw systemFault(result, 'lock the image', subject.path)
  if (native !== undefined) tellQemu(subject, native)
}

/** The lines of /proc/locks that hold (not merely wait for) a lock. */
export function parseLocks(text: string): SystemLock[] {
  const pattern = /^\d+: (\w+) +\w+ +(\w+) +(-?\d+) ([0-9a-f]+:[0-9a-f]+:\d+) (\d+) (\d+|EOF)$/gm
  return [...text.matchAll(pattern)].map(([, kind, mode, pid, file, start, end]) => ({
    kind: kind ?? '',
    write: mode === 'WRITE',
    pid: Number(pid),
    file: file ?? '',
    start: Number(start),
    end: end === 'EOF' ? Number.POSITIVE_INFINITY : Number(end),
  }))
}

/** Whether a lock that is no flock (flock itself decides about those) keeps a writer, or a reader, out. */
export function excludes(lock: SystemLock, readOnly: boolean): boolean {
  if (lock.kind !== 'OFDLCK' && lock.kind !== 'POSIX') return false
  if (lock.write) return true
  const covers = (byte: number): boolean => lock.start <= byte && byte <= lock.end
  if (lock.end === Number.POSITIVE_INFINITY) return !readOnly
  if (readOnly) return covers(QEMU_USES + QEMU_WRITE) || covers(QEMU_WITHHOLDS + QEMU_READ)
  return covers(QEMU_USES + QEMU_WRITE) || covers(QEMU_WITHHOLDS + QEMU_WRITE)
}

async function locksOn({ device, inode }: LockSubject): Promise<SystemLock[]> {
  const hex = (part: bigint): string => part.toString(16).padStart(2, '0')
  const file = `${hex(deviceMajor(device))}:${hex(deviceMinor(device))}:${inode}`
  try {
    return parseLocks(await readFile('/proc/locks', 'utf8')).filter((lock) => lock.file === file)
  } catch {
    // No /proc here: the lock works all the same, but a refusal cannot name the holder.
    return []
  }
}

async function inUse(subject: LockSubject, lock: SystemLock | undefined): Promise<Fault> {
  return new Fault('IN_USE', `image is in use by ${await holder(lock)}`, {
    where: subject.path,
    remedy: 'stop the other user of the image, or serve a copy',
  })
}

async function holder(lock: SystemLock | undefined): Promise<string> {
  if (lock?.pid === process.pid) return `this process (${process.pid}), under another export`
  if (lock === undefined || lock.pid <= 0) {
    return lock?.kind === 'OFDLCK' ? 'another process (QEMU-style lock)' : 'another process'
  }
  try {
    const name = (await readFile(`/proc/${lock.pid}/comm`, 'utf8')).trim()
    return `process ${lock.pid} (${name})`
  } catch {
    return `process ${lock.pid}`
  }
}

/** Marks the image as QEMU would, so that its tools refuse it with their own message. Best effort: flock decides. */
function tellQemu({ fd, readOnly }: LockSubject, native: Native): void {
  native.lockByte(fd, QEMU_USES + QEMU_READ)
  if (readOnly) {
    native.lockByte(fd, QEMU_WITHHOLDS + QEMU_WRITE)
    return
  }
  for (const permission of [QEMU_WRITE, QEMU_RESIZE]) {
    native.lockByte(fd, QEMU_USES + permission)
    native.lockByte(fd, QEMU_WITHHOLDS + permission)
  }
}

/** 0, or a negated errno. */
async function flockByCommand({ fd, path, readOnly }: LockSubject): Promise<number> {
  const CONFLICT = 75
  const kind = readOnly ? '--shared' : '--exclusive'
  const child = spawn(
    'flock',
    [kind, '--nonblock', '--conflict-exit-code', String(CONFLICT), '3'],
    {
      stdio: ['ignore', 'ignore', 'ignore', fd],
    },
  )
  try {
    const [code] = (await once(child, 'close')) as [number | null]
    if (code === 0) return 0
    return code === CONFLICT ? -errno('EWOULDBLOCK') : -errno('ENOLCK')
  } catch (cause) {
    throw new Fault('NOT_SUPPORTED', 'cannot lock the image: neither koffi nor flock(1) is there', {
      where: path,
      remedy: 'install util-linux, or the koffi package for this machine',
      cause,
    })
  }
}

/** The parts of a Linux device number (gnu_dev_major and gnu_dev_minor of sys/sysmacros.h). */
export function deviceMajor(device: bigint): bigint {
  return ((device >> 8n) & 0xfffn) | ((device >> 32n) & ~0xfffn)
}

export function deviceMinor(device: bigint): bigint {
  return (device & 0xffn) | ((device >> 12n) & ~0xffn)
}
