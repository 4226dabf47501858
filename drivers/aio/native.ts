/**
 * The few system calls that Node does not offer, through koffi. Everything here is optional: where koffi or glibc
 * is missing (or COLOTAP_NATIVE=off says so) loadNative() gives undefined and the aio driver does less, slower.
 *
 * Invariants:
 *  - Every call returns a result >= 0, or the negated errno.
 *  - Only calls with `Now` in their name, and those that never touch a disk, may be made on the main thread.
 */

import { createRequire } from 'node:module'
import { constants } from 'node:os'

/** From linux/falloc.h. */
export const FALLOC_KEEP_SIZE = 1
export const FALLOC_PUNCH_HOLE = 2
export const FALLOC_ZERO_RANGE = 16

/** From unistd.h and sys/file.h. */
export const SEEK_DATA = 3
export const SEEK_HOLE = 4
export const LOCK_SH = 1
export const LOCK_EX = 2
export const LOCK_NB = 4

const RWF_NOWAIT = 8
const POSIX_FADV_WILLNEED = 3
const BLKDISCARD = 0x1277
const F_OFD_SETLK = 37
const F_RDLCK = 0

/** Sends data from or to memory by its address: the caller keeps the memory alive meanwhile. */
export interface Native {
  address(bytes: Uint8Array): number
  /** Reads what the page cache has and never waits for a disk. */
  readNow(fd: number, into: Uint8Array, at: number): number
  /** Writes what needs no waiting; -EOPNOTSUPP where the file system cannot tell. */
  writeNow(fd: number, from: Uint8Array, at: number): number
  read(fd: number, address: number, length: number, at: number): number
  write(fd: number, address: number, length: number, at: number): number
  copy(to: number, from: number, length: number): void
  fallocate(fd: number, mode: number, at: number, length: number): number
  seek(fd: number, at: number, whence: number): number
  discard(fd: number, at: number, length: number): number
  /** Has the page cache read a range in advance. */
  willNeed(fd: number, at: number, length: number): number
  flock(fd: number, operation: number): number
  /** A shared lock of the open file description on one byte, as QEMU takes them on its images. */
  lockByte(fd: number, at: number): number
}

let loaded: { readonly native: Native | undefined } | undefined

/** The calls, or undefined where they are not to be had. The same answer each time. */
export function loadNative(): Native | undefined {
  if (process.env['COLOTAP_NATIVE'] === 'off') return undefined
  loaded ??= { native: bind() }
  return loaded.native
}

type Koffi = typeof import('koffi')
type Call<Arguments extends (number | bigint | Uint8Array | BigInt64Array)[]> = (
  ...given: Arguments
) => number

function bind(): Native | undefined {
  try {
    const koffi = createRequire(import.meta.url)('koffi') as Koffi
    return declare(koffi, koffi.load('libc.so.6'))
  } catch {
    // Not installed, no prebuilt binary for this machine, or another C library: the driver says what it lacks.
    return undefined
  }
}

function declare(koffi: Koffi, libc: ReturnType<Koffi['load']>): Native {
  // Addresses are passed as numbers: a user-space address fits 2^53, and a number costs less than a BigInt.
  const preadv2: Call<[number, number, number, number, number]> = libc.func(
    'int64 preadv2(int fd, uintptr_t iov, int count, int64 at, int flags)',
  )
  const pwritev2: Call<[number, number, number, number, number]> = libc.func(
    'int64 pwritev2(int fd, uintptr_t iov, int count, int64 at, int flags)',
  )
  const pread: Call<[number, number, number, number]> = libc.func(
    'int64 pread64(int fd, uintptr_t memory, size_t length, int64 at)',
  )
  const pwrite: Call<[number, number, number, number]> = libc.func(
    'int64 pwrite64(int fd, uintptr_t memory, size_t length, int64 at)',
  )
  const memcpy: Call<[number, number, number]> = libc.func(
    'uintptr_t memcpy(uintptr_t to, uintptr_t from, size_t length)',
  )
  const fallocate: Call<[number, number, number, number]> = libc.func(
    'int fallocate64(int fd, int mode, int64 at, int64 length)',
  )
  const lseek: Call<[number, number, number]> = libc.func(
    'int64 lseek64(int fd, int64 at, int whence)',
  )
  const fadvise: Call<[number, number, number, number]> = libc.func(
    'int posix_fadvise64(int fd, int64 at, int64 length, int advice)',
  )
  const flock: Call<[number, number]> = libc.func('int flock(int fd, int operation)')
  const ioctl: Call<[number, number, BigInt64Array]> = libc.func(
    'int ioctl(int fd, unsigned long request, void *argument)',
  )
  const fcntl: Call<[number, number, Uint8Array]> = libc.func(
    'int fcntl64(int fd, int command, void *argument)',
  )

  const checked = (result: number): number => (result < 0 ? -koffi.errno() : result)

  // One iovec for all inline transfers: they happen one at a time, on this thread.
  const iovec = new BigUint64Array(new SharedArrayBuffer(16))
  const iovecLength = new Uint32Array(iovec.buffer, 8, 2)
  const iovecAddress = Number(koffi.address(iovec))
  const aim = (bytes: Uint8Array): number => {
    pin(bytes)
    iovec[0] = koffi.address(bytes)
    iovecLength[0] = bytes.length
    return iovecAddress
  }

  return {
    address: (bytes) => {
      pin(bytes)
      return Number(koffi.address(bytes))
    },
    readNow: (fd, into, at) => checked(preadv2(fd, aim(into), 1, at, RWF_NOWAIT)),
    writeNow: (fd, from, at) => checked(pwritev2(fd, aim(from), 1, at, RWF_NOWAIT)),
    read: (fd, address, length, at) => checked(pread(fd, address, length, at)),
    write: (fd, address, length, at) => checked(pwrite(fd, address, length, at)),
    copy: (to, from, length) => {
      memcpy(to, from, length)
    },
    fallocate: (fd, mode, at, length) => checked(fallocate(fd, mode, at, length)),
    seek: (fd, at, whence) => checked(lseek(fd, at, whence)),
    discard: (fd, at, length) =>
      checked(ioctl(fd, BLKDISCARD, BigInt64Array.of(BigInt(at), BigInt(length)))),
    // This call gives its error instead of setting errno.
    willNeed: (fd, at, length) => -fadvise(fd, at, length, POSIX_FADV_WILLNEED),
    flock: (fd, operation) => checked(flock(fd, operation)),
    lockByte: (fd, at) => checked(fcntl(fd, F_OFD_SETLK, flockStructure(F_RDLCK, at))),
  }
}

/** Small typed arrays live in the heap, where the collector moves them, until somebody asks for their buffer. */
function pin(bytes: Uint8Array): ArrayBufferLike {
  return bytes.buffer
}

/** `struct flock` of 64-bit Linux for one byte: type, whence (SEEK_SET), start, length, pid (0, as OFD locks demand). */
function flockStructure(type: number, at: number): Uint8Array {
  const structure = Buffer.alloc(32)
  structure.writeInt16LE(type, 0)
  structure.writeBigInt64LE(BigInt(at), 8)
  structure.writeBigInt64LE(1n, 16)
  return structure
}

const NUMBERS: Readonly<Record<string, number>> = constants.errno

/** The number of an errno name, such as `ENOSPC`. */
export function errno(name: keyof typeof constants.errno): number {
  return NUMBERS[name] ?? 0
}
