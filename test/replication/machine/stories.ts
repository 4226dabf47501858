/** One line for each thing that a machine does, so that a story about it reads as one. */

import type { GroupEvent } from '../../../replication/group.ts'
import { PARTIAL, type Frame } from '../../../replication/machine/frame.ts'
import { decodeDisk, decodeHello, decodeRefusal } from '../../../replication/machine/handshake.ts'

export function describeFrame({ type, flags, position, extent, disk, payload }: Frame): string {
  switch (type) {
    case 'hello': {
      const { replica, generation, checkpoint, announced } = decodeHello(payload)
      return `hello from ${replica} on ${generation ?? 'nothing'} at ${checkpoint}/${announced ?? '?'}`
    }
    case 'refuse': {
      const { code, reason, term } = decodeRefusal(payload)
      return `refuse ${code} in term ${term}: ${reason}`
    }
    case 'checkpoint':
      return (flags & PARTIAL) === 0 ? `checkpoint ${position}` : `part ${position}`
    case 'done':
    case 'handover':
    case 'acknowledge':
    case 'received':
    case 'stored':
      return `${type} ${position}`
    case 'pressure':
      return `pressure ${position} of ${extent}`
    case 'heartbeat':
    case 'write':
    case 'zero':
    case 'discard':
    case 'state':
    case 'segment':
    case 'dirty':
    case 'ready':
    case 'synced':
    case 'compare':
    case 'sums':
      return type
    case 'withdraw':
    case 'complete':
    case 'accept':
      return `${type} ${disk}`
    case 'offer':
      return `offer ${disk}: ${decodeDisk(payload).name} of ${decodeDisk(payload).size}`
    case 'resized':
      return `resized ${disk} to ${extent}`
  }
}

export function describeEvent(event: GroupEvent): string {
  switch (event.event) {
    case 'REPLICATION_CHECKPOINT':
      return `CHECKPOINT ${event.data.checkpoint}`
    case 'REPLICATION_LINK':
      return event.data.up ? 'LINK up' : `LINK down: ${event.data.reason}`
    case 'REPLICATION_ROLE':
      return `ROLE ${event.data.role} in term ${event.data.term}`
    case 'REPLICATION_PROTECTION':
      return `PROTECTION ${event.data.protection}${event.data.reason === null ? '' : `: ${event.data.reason}`}`
    case 'REPLICATION_PRESSURE':
      return `PRESSURE ${event.data.bytes} of ${event.data.limit}`
    case 'REPLICATION_VERIFY':
      return `VERIFY ${event.data.state}`
    case 'REPLICATION_ERROR':
      return `ERROR ${event.data.error}`
  }
}
