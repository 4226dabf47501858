/**
 * What a primary compares with its secondary: the comparison over the link in use, and the verify that an operator has asked for.
 *
 * Invariant 20: a difference is an error event when the first one is found, and a sticky error until a verify finds none.
 */

import { Fault } from '../../core/fault.ts'
import type { GroupEnvironment, Link } from '../environment.ts'
import type { VerifyReport } from '../group.ts'
import type { Frame } from '../machine/frame.ts'
import type { PrimaryInput } from '../machine/primary-io.ts'
import type { PrimaryMachine } from '../machine/primary.ts'
import type { PrimaryDisk } from '../primary-disk.ts'
import type { RegionMap } from '../regions/region-map.ts'
import type { Troubles } from '../troubles.ts'
import { Summer } from './checksums.ts'
import { Comparison } from './comparison.ts'
import { Verify } from './verify.ts'

export interface VerifierOptions {
  readonly group: string
  readonly disks: () => readonly PrimaryDisk[]
  readonly regions: () => readonly RegionMap[]
  readonly machine: PrimaryMachine
  readonly environment: GroupEnvironment
  readonly troubles: Troubles
  /** The most bytes in one question. */
  readonly compareBytes: number
  readonly step: (input: PrimaryInput) => void
}

export class Verifier {
  readonly #options: VerifierOptions
  readonly #summer: Summer
  #comparison: Comparison | undefined
  #verify: Verify | undefined
  /** The end of the verify before: its questions may still be open. */
  #before: Promise<void> = Promise.resolve()

  constructor(options: VerifierOptions) {
    this.#options = options
    this.#summer = new Summer(options.environment.timers)
  }

  get comparison(): Comparison | undefined {
    return this.#comparison
  }

  /** Of the verify under way, or of the last one; null before the first. */
  get report(): VerifyReport | null {
    return this.#verify?.report ?? null
  }

  linkUp(link: Link): void {
    this.#comparison = new Comparison(link, this.#summer)
  }

  linkDown(reason: string): void {
    this.#comparison?.end()
    this.#comparison = undefined
    this.#verify?.stop(reason)
  }

  /** The role ends. What differs is told to the next primary as changed. */
  end(reason: string): void {
    this.linkDown(reason)
    this.#options.troubles.over('verify')
  }

  /** An answer came. @throws Fault to end the link */
  take(frame: Frame): void {
    if (this.#comparison === undefined)
      throw new Fault('PROTOCOL', 'the secondary sent checksums that nobody asked for')
    this.#comparison.take(frame)
  }

  setRate(rate: number): void {
    if (this.#verify?.running === true) this.#verify.setRate(rate)
  }

  /**
   * Begins a verify; one that is under way goes on.
   * @param rate bytes a second; 0: as many as it can
   * @throws Fault where there is nothing to compare with
   */
  start(repair: boolean, rate: number): void {
    if (this.#verify?.running === true) {
      this.#verify.repair ||= repair
      return
    }
    const comparison = this.#comparison
    const objection = this.#objection()
    if (comparison === undefined || objection !== undefined)
      throw new Fault('NOT_PERMITTED', objection ?? 'there is no secondary to compare with', {
        where: `group ${this.#options.group}`,
        remedy: 'wait until the group is protected',
      })
    const { disks, regions } = this.#options
    const verify = new Verify(
      {
        ...this.#options,
        ...{ comparison, rate, disks: disks(), regions: regions() },
        alarm: (report) => this.#alarm(report),
        ended: (report) => this.#ended(report),
      },
      repair,
    )
    this.#verify = verify
    this.#before = this.#before.then(() => verify.run())
  }

  cancel(reason: string): void {
    this.#verify?.stop(reason)
  }

  /** Why there is nothing that could be compared now. */
  #objection(): string | undefined {
    const { machine } = this.#options
    if (machine.protection !== 'protected') {
      const { reason } = machine
      return `the secondary is not known to be equal now: ${machine.protection}${reason === null ? '' : ` (${reason})`}`
    }
    return machine.peerCompares ? undefined : 'the other side cannot compare'
  }

  #alarm({ ranges }: VerifyReport): void {
    const [first] = ranges
    const where = first === undefined ? '' : `: at ${first.at} of disk "${first.disk}"`
    this.#options.troubles.report(
      'verify',
      `the secondary differs from this side${where}; the verify that has found it goes on`,
    )
  }

  #ended(report: VerifyReport): void {
    const { environment, troubles, group, step } = this.#options
    if (report.differentBytes > 0) troubles.report('verify', lossOf(report))
    else if (report.state === 'equal') troubles.over('verify')
    environment.onEvent({ event: 'REPLICATION_VERIFY', data: { group, ...report } })
    if (report.repair && report.state === 'different')
      step({ type: 'repair', nowMs: environment.nowMs() })
  }
}

function lossOf({ differentBytes, ranges, repair, state }: VerifyReport): string {
  const [first] = ranges
  const where = first === undefined ? '' : `, the first at ${first.at} of disk "${first.disk}"`
  const next =
    repair && state === 'different'
      ? 'they are sent again: verify once more to see that all is well'
      : 'verify with repair sends them again, and so does the next connection'
  return `verify: up to ${differentBytes} bytes of the secondary differ from this side${where}; ${next}`
}
