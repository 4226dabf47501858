/** What an image says that cannot be true. */

import { Fault } from '../../core/fault.ts'

export function corruption(path: string, what: string): Fault {
  return new Fault('IO', `the image is corrupt: ${what}`, {
    where: path,
    remedy: 'keep a copy of the image, then run: colotap image check --repair all',
  })
}

/** The fault with the path of the image. */
export function withPath(path: string, error: unknown): unknown {
  if (!(error instanceof Fault) || error.where !== undefined) return error
  return new Fault(error.code, error.what, {
    where: path,
    remedy: error.remedy ?? 'check the image: colotap image check',
    cause: error.cause,
  })
}
