/**
 * Each defect of a predecessor, and one against each invariant, is planted in a copy of the program: a test that is
 * named for it has to fail, and the same test passes without it. Table: docs/testing.md.
 *
 * MUTANTS is a part of the sentences or owners of those to try, instead of all.
 */

import t from 'tap'

import { MutatedTree } from './mutated-tree.ts'
import { PLANTED } from './planted.ts'

const CHOSEN = process.env['MUTANTS'] ?? ''
const JOBS = 2

const mutants = PLANTED.filter(({ defect, of }) => `${of}: ${defect}`.includes(CHOSEN))

void t.test('every planted defect is noticed', async (t) => {
  const tree = await MutatedTree.of(t, process.cwd())
  const trees = [tree]
  while (trees.length < JOBS) trees.push(await tree.copy())
  const judges = [...new Map(mutants.map((each) => [`${each.test}: ${each.caughtBy}`, each]))]
  await each(trees, judges, async (own, [name, { test, caughtBy }]) => {
    const { outcome, output } = await own.run(test, caughtBy)
    t.equal(outcome, 'passed', `without a defect: ${name}`, outcome === 'passed' ? {} : { output })
  })
  await each(trees, mutants, async (own, mutant) => {
    const { of, defect, test, caughtBy } = mutant
    const { outcome, output } = await own.plant(mutant, () => own.run(test, caughtBy))
    const more = outcome === 'failed' ? {} : { test, caughtBy, output }
    t.equal(outcome, 'failed', `${of}: ${defect}`, more)
  })
})

/** Works off a list, with each tree at one piece at a time. */
async function each<T>(
  trees: readonly MutatedTree[],
  list: readonly T[],
  work: (tree: MutatedTree, item: T) => Promise<void>,
): Promise<void> {
  const queue = list.values()
  await Promise.all(
    trees.map(async (tree) => {
      for (const item of queue) await work(tree, item)
    }),
  )
}
