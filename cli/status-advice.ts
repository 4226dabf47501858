/**
 * What an operator can do about a group that is not protected, from where he stands: each side has its own way out.
 *
 * Invariant: where the reason has a remedy of its own, the advice does not name another one.
 */

import type { GroupStatus, Protection } from '../replication/group.ts'

type Situation = Pick<
  GroupStatus,
  'group' | 'role' | 'protection' | 'heals' | 'refused' | 'leaving' | 'error'
>

type Unprotected = Exclude<Protection, 'protected'>

/** @returns undefined where there is nothing to say */
export function adviceOn(status: Situation): string | undefined {
  const { role, protection, heals } = status
  if (protection === 'protected') return undefined
  if (status.leaving) return LEAVING
  if (!heals) return 'this does not heal by itself: the reason says what to do'
  return role === 'secondary' ? SECONDARY[protection](status) : primaryAdvice(status, protection)
}

function primaryAdvice({ role, group, refused }: Situation, protection: Unprotected): string {
  if (protection === 'frozen') {
    const first = refused ? 'mend what the secondary names' : 'restore the link'
    return `no write is acknowledged: ${first}, promote the other side, or go on alone with colotap set ${group} --on-link-loss continue`
  }
  if (protection === 'unprotected' && refused)
    return 'writes are kept here only: the secondary is there, and says in the reason what is wrong on its side; when that is mended it catches up by itself'
  if (role === 'active')
    return 'writes are kept here only: start the other side again, as its secondary, and it catches up by itself'
  return PRIMARY[protection]
}

const LEAVING =
  'no write is taken here: this side is becoming a secondary, and goes on trying by itself; where the error names what keeps it from that, mend it'

const PRIMARY: Readonly<Record<Exclude<Unprotected, 'frozen'>, string>> = {
  unprotected:
    'writes are kept here only: bring the secondary or its link back, and it catches up by itself',
  connecting: 'the secondary has not answered yet: see that it runs, and that its address is right',
  resyncing: 'the copy is being completed: nothing to do',
  inconsistent: 'this copy is a mixture and cannot be used',
}

const SECONDARY: Readonly<Record<Unprotected, (status: Situation) => string>> = {
  unprotected: ({ group, error }) =>
    error === null
      ? `this side stays at its last checkpoint: bring the primary or its link back, and it catches up by itself; where the primary is lost for good, fence it, then colotap promote ${group}`
      : 'this side stays at its last checkpoint: mend what the error names; the primary comes back by itself then',
  connecting: () =>
    'no primary has called yet: see that one runs, and that this side is at the address where it calls',
  resyncing: () => 'what this side lacks is being sent: nothing to do',
  frozen: () => 'nothing is received: see to the primary',
  inconsistent: () =>
    'this copy is a mixture and cannot be used: let a resync from the primary finish',
}
