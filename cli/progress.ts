/** How far long work is, drawn on one line of a terminal. */

import type { Progress } from '../drivers/image-format.ts'
import type { Terminal } from './command-line.ts'

const WIDTH = 40
/** Milliseconds between two drawings: often enough for a person. */
const PAUSE = 100

/** The bytes that put `text` in the place of the line before it; an empty text clears the line. */
export function progressLine(text: string): string {
  return `\r\u001b[K${text}`
}

/** The bytes that put `text` in the place of all that a terminal shows. */
export function screenful(text: string): string {
  return `\u001b[H\u001b[J${text}\n`
}

/** `[=====>    ]  52 %` */
export function bar(done: number, total: number): string {
  const part = total === 0 ? 1 : Math.min(1, done / total)
  const filled = Math.floor(part * WIDTH)
  const head = filled < WIDTH ? '>' : ''
  const line = `${'='.repeat(filled)}${head}`.padEnd(WIDTH)
  return `[${line}] ${String(Math.floor(part * 100)).padStart(3)} %`
}

/** Draws progress under a title, where somebody watches. */
export function progressOn(terminal: Terminal, title: string): Progress {
  const { progress } = terminal
  if (progress === undefined) return () => undefined
  let next = 0
  return (done, total) => {
    const now = performance.now()
    if (now < next && done < total) return
    next = now + PAUSE
    progress(`${title} ${bar(done, total)}`)
  }
}
