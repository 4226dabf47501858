/**
 * The checkpoints that a primary has announced, or will announce once a resync is done, and who waits for them.
 *
 * Invariant: every request leaves exactly once: confirmed, overdue or dropped.
 */

export interface CheckpointRequest {
  readonly request: number
  readonly askedMs: number
  readonly deadlineMs: number
}

/** A marker under way to the secondary. Its waiter may have given up; the marker goes on. */
export interface Marker {
  readonly checkpoint: number
  /** Payload bytes of the epoch that it ends. */
  readonly bytes: number
  /** It ends a part of a copy, and is no checkpoint to anybody else. */
  readonly partial: boolean
  readonly waiter: CheckpointRequest | undefined
}

/** A request that ends without its checkpoint, and the number that it was announced with, if it was. */
export interface Unanswered {
  readonly waiter: CheckpointRequest
  readonly checkpoint: number | undefined
}

export class Markers {
  /** In the order in which they were sent, which is the order in which they are confirmed. */
  #underWay: Marker[] = []
  #queued: CheckpointRequest[] = []

  /** The number that has to be confirmed next. */
  get awaited(): number | undefined {
    return this.#underWay[0]?.checkpoint
  }

  queue(request: CheckpointRequest): void {
    this.#queued.push(request)
  }

  takeQueued(): readonly CheckpointRequest[] {
    const queued = this.#queued
    this.#queued = []
    return queued
  }

  sent(marker: Marker): void {
    this.#underWay.push(marker)
  }

  /** The marker with the awaited number is done. */
  confirm(): Marker | undefined {
    return this.#underWay.shift()
  }

  takeOverdue(nowMs: number): Unanswered[] {
    const overdue = this.#requests().filter(({ waiter }) => waiter.deadlineMs <= nowMs)
    this.#queued = this.#queued.filter(({ deadlineMs }) => deadlineMs > nowMs)
    this.#underWay = this.#underWay.map((marker) =>
      marker.waiter !== undefined && marker.waiter.deadlineMs <= nowMs
        ? { ...marker, waiter: undefined }
        : marker,
    )
    return overdue
  }

  /** The link is gone: nothing that was under way will be confirmed on it. */
  dropAll(): Unanswered[] {
    const dropped = this.#requests()
    this.#underWay = []
    this.#queued = []
    return dropped
  }

  #requests(): Unanswered[] {
    const announced = this.#underWay.flatMap(({ waiter, checkpoint }) =>
      waiter === undefined ? [] : [{ waiter, checkpoint }],
    )
    return [...announced, ...this.#queued.map((waiter) => ({ waiter, checkpoint: undefined }))]
  }
}
