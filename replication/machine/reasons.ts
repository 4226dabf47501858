/** Why a group is not protected, where it is not for the peer or the link to say; with what an operator does about it. */

export const ALONE = 'active without a secondary'

export const DEPOSED =
  'this side was deposed: the other one leads; stop the guest here, then demote this side'

export const SWITCHED_OFF = 'replication was switched off here: connect switches it on again'

export const SWITCHED_OFF_THERE =
  'replication was switched off on the secondary: connect, there, switches it on again'

export const STUCK =
  'the memory of the secondary is full, and neither its images nor its journal take anything: mend its disks, which the errors in its status name; it follows again when one of them takes something'
