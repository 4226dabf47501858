/** What of a footer changes with the size of the disk: nothing that a child or a toolstack knows the image by. */

import { Fault } from '../../core/fault.ts'
import { GiB, SECTOR } from '../../core/units.ts'
import { LARGEST_DISK, type Footer } from './footer.ts'
import { chsOf } from './geometry.ts'

/** @throws Fault where the disk cannot have that size */
export function resizedFooter(footer: Footer, size: number): Footer {
  checkSize(size)
  if (size < footer.currentSize) {
    throw new Fault('NOT_SUPPORTED', 'a VHD does not shrink', {
      remedy: 'create a smaller image, and copy',
    })
  }
  return { ...footer, currentSize: size, geometry: chsOf(size) }
}

/** @throws Fault where no VHD can have that size */
export function checkSize(size: number): void {
  if (size > LARGEST_DISK) {
    throw new Fault('NOT_SUPPORTED', `a VHD cannot be larger than ${LARGEST_DISK / GiB} GiB`, {
      where: `${size} bytes`,
      remedy: 'use qcow for larger disks',
    })
  }
  if (size <= 0 || size % SECTOR !== 0) {
    throw new Fault('INVALID', `a VHD cannot have ${size} bytes`, {
      remedy: `give a positive multiple of ${SECTOR}`,
    })
  }
}
