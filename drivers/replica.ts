/** The layers `colo` and `remus`: they join the disk below to a replication group (replication/). */

import { deviceBelow, type Driver } from './driver.ts'

const KEYS = {
  role: {
    meaning: 'which side this is; auto: secondary if the address can be listened on',
    values: 'primary|secondary|auto',
  },
  group: {
    meaning: 'the disks with this name are replicated and checkpointed as one',
    values: 'a name',
  },
  listen: {
    meaning: 'where a primary listens when it becomes a secondary',
    values: 'HOST:PORT',
  },
  peer: {
    meaning: 'where the other side listens, for a secondary that becomes a primary',
    values: 'HOST:PORT',
  },
  initial: {
    meaning: 'whether a new secondary gets a copy, or holds the same content already',
    values: 'copy|identical',
  },
  resync: {
    meaning: 'whether a resync sends all that may differ, or asks first, and sends what does',
    values: 'copy|checksums',
  },
  'on-link-loss': {
    meaning: 'whether a primary goes on without its secondary, or lets its guest wait',
    values: 'continue|freeze',
  },
  ack: {
    meaning:
      "when a guest's write completes: sent to the secondary, in its memory, or in its journal",
    values: 'sent|received|durable',
  },
  fence: {
    meaning: 'a program that is asked before this side goes on without the other one',
    values: 'a path',
  },
  interval: {
    meaning: 'milliseconds between checkpoints that the primary makes by itself; 0: none',
    values: '0-3600000',
  },
  'resync-rate': {
    meaning: 'the most that a resync sends a second; 0: as much as it can',
    values: 'a size such as 100M',
  },
  memory: {
    meaning: 'the most that a secondary holds of epochs in memory',
    values: 'a size such as 1G',
  },
  durability: {
    meaning: 'where a secondary keeps checkpoints: on disk, or only as long as its process lives',
    values: 'journal|memory',
  },
  journal: {
    meaning: 'the most that a secondary keeps of epochs on disk',
    values: 'a size such as 8G',
  },
  wire: {
    meaning: 'what the two sides speak; blktap2 is for an old peer, and has one disk in a group',
    values: 'colotap|blktap2',
  },
  heartbeat: { meaning: 'milliseconds between signs of life', values: '10-60000' },
  timeout: {
    meaning: 'milliseconds of silence after which the peer counts as gone',
    values: '100-600000',
  },
  'tls-creds': {
    meaning: 'both sides prove themselves by X.509 certificates, and the link is encrypted',
    values: 'a folder with ca-cert.pem and server- or client-cert.pem and -key.pem',
  },
  'tls-psk': {
    meaning: 'both sides prove themselves by a pre-shared key, and the link is encrypted',
    values: 'a file with lines username:hexkey',
  },
  'tls-user': {
    meaning: 'the user of the tls-psk file that the primary is; a secondary accepts only this one',
    values: 'a name',
  },
  'tls-name': {
    meaning: "the name that the other side's certificate must have",
    values: 'a host name or an address',
  },
} as const

/** Remus and COLO differ in what the secondary's guest may see, not in how a pipeline is written. */
function replicaDriver(mode: 'colo' | 'remus'): Driver {
  return {
    name: mode,
    kind: 'layer',
    target: 'HOST:PORT, the peer on a primary, the address to listen on on a secondary',
    keys: KEYS,
    stays: true,
    open: (stage, below, context) => context.attachReplica(stage, mode, deviceBelow(below)),
  }
}

/** Continuous operation: the secondary's guest runs on the last checkpoint and its own writes. */
export const colo = replicaDriver('colo')

/** Standby: the secondary serves nothing until it is promoted. */
export const remus = replicaDriver('remus')
