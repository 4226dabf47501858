import t from 'tap'

import { adviceOn } from '../../cli/status-advice.ts'

type Situation = Parameters<typeof adviceOn>[0]

const CALM: Situation = {
  ...{ group: 'vm1', role: 'primary', protection: 'unprotected' },
  ...{ heals: true, refused: false, leaving: false, error: null },
}

const CASES: readonly (readonly [string, Partial<Situation>, RegExp, RegExp])[] = [
  ['a primary whose link is lost', {}, /bring the secondary or its link back/, /promote|reason/],
  [
    'a primary whose secondary has a full journal',
    { refused: true },
    /reason.*mended/,
    /link back|bring the secondary/,
  ],
  ['a frozen one', { protection: 'frozen' }, /restore the link.*set vm1 --on-link-loss/, /mend/],
  [
    'a frozen one that was refused',
    { protection: 'frozen', refused: true },
    /mend what the secondary names/,
    /restore the link/,
  ],
  ['one that nothing but an operator heals', { heals: false }, /the reason says/, /link/],
  [
    'one that is becoming a secondary, whose journal is full',
    { refused: true, leaving: true, heals: false, error: 'the journal is full' },
    /no write is taken.*becoming a secondary.*error names/,
    /kept here only|catches up|does not heal/,
  ],
  ['an active one', { role: 'active' }, /start the other side again/, /link/],
  ['one that nobody answers', { protection: 'connecting' }, /secondary has not answered/, /called/],
  [
    'a secondary whose primary is gone',
    { role: 'secondary' },
    /last checkpoint.*colotap promote vm1/,
    /kept here only|bring the secondary/,
  ],
  [
    'a secondary with a dead disk',
    { role: 'secondary', error: 'disk "a" fails' },
    /mend what the error names/,
    /kept here only|promote/,
  ],
  [
    'a secondary that nobody has called',
    { role: 'secondary', protection: 'connecting' },
    /no primary has called/,
    /answered/,
  ],
  ['a mixture', { role: 'secondary', protection: 'inconsistent' }, /mixture/, /promote/],
]

void t.test('advice is for the side that shows it, and for what is wrong there', (t) => {
  for (const [who, situation, wanted, misleading] of CASES) {
    const advice = adviceOn({ ...CALM, ...situation }) ?? ''
    t.match(advice, wanted, who)
    t.notMatch(advice, misleading, who)
  }
  t.equal(adviceOn({ ...CALM, protection: 'protected' }), undefined)
  t.end()
})
