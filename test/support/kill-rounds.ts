/** Many rounds of a test that kills something at a moment which a seed chooses. */

import type { Test } from 'tap'

const AT_A_TIME = 2
const FIRST_SEED = Number(process.env['KILL_SEED'] ?? Date.now() % 1_000_000)

/**
 * Runs `round` with seeds in a row; KILL_ROUNDS and KILL_SEED choose other ones.
 * @param round resolves to what is wrong, if anything is
 */
export function killRounds(
  t: Test,
  claim: string,
  usualRounds: number,
  round: (seed: number) => Promise<string | undefined>,
): void {
  const rounds = Number(process.env['KILL_ROUNDS'] ?? usualRounds)
  const name = `${claim}: ${rounds} moments`
  void t.test(name, { timeout: 1_800_000 }, async (t) => {
    const seeds = Array.from({ length: rounds }, (_, index) => FIRST_SEED + index)
    t.comment(
      `seeds ${FIRST_SEED} to ${FIRST_SEED + rounds - 1}; repeat one with KILL_ROUNDS=1 KILL_SEED=<seed>`,
    )
    const violations: string[] = []
    let finished = 0
    const lane = async (): Promise<void> => {
      for (let seed = seeds.shift(); seed !== undefined; seed = seeds.shift()) {
        const violation = await round(seed)
        finished += 1
        if (violation !== undefined) violations.push(`seed ${seed}: ${violation}`)
      }
    }
    await Promise.all(Array.from({ length: AT_A_TIME }, lane))
    t.same(violations, [])
    t.equal(finished, rounds)
  })
}
