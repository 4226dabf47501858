/**
 * A sparse array of 32-bit entries, one per page of a disk: the index of an epoch. It is a radix tree, so that it is
 * walked in ascending order without sorting, grows without rehashing, and keeps a run of equal entries as one:
 * an entry that is 0 or negative, found above the leaves, stands for every page below it.
 *
 * Invariants:
 *  - A word of a leaf is the entry of one page, any value. A word above the leaves is a child node (> 0), or the
 *    entry of all its pages (<= 0). The root is node 0, and so is no child.
 *  - Nodes live in slots of the epoch's arena, 32 to a page, so that they are counted and given back with it.
 */

import { assert } from '../core/assert.ts'
import { FANOUT, MOST_LEVELS, NODE, PAGE } from './page-memory.ts'
import type { SlotArena } from './slot-arena.ts'

const NODES_PER_PAGE = PAGE / NODE
const INDEX = FANOUT - 1
const NODE_SHIFT = 5
/** A node number is a slot and a place in its page; a slab has 64 pages. */
const SLAB_SHIFT = 11
const NODES_PER_SLAB_MASK = (1 << SLAB_SHIFT) - 1
assert(1 << NODE_SHIFT === FANOUT && NODES_PER_PAGE === 32, 'shifts and sizes agree')

/** Pages below one word of a node, by level; leaves are level 0. */
const SPANS = Array.from({ length: MOST_LEVELS }, (_, level) => FANOUT ** level)

/** Told of each entry that is overwritten by fill(), with the number of pages that it stood for there. */
export type EntryDropped = (entry: number, pages: number) => void

export class PageTree {
  readonly #arena: SlotArena
  #top: number
  readonly #dropped: EntryDropped
  #planted = false
  /** The page of nodes that is being used up: its next node, and how many are left. */
  #nextNode = 0
  #nodesLeft = 0
  #freeNodes: number[] = []
  /** The last leaf that was found, and the number of its group of pages (-1: none). */
  #leaf = 0
  #leafGroup = -1
  /** After get(): that many pages from the one asked for have the same entry, at least. */
  span = 0

  constructor(arena: SlotArena, pages: number, dropped: EntryDropped) {
    this.#arena = arena
    this.#dropped = dropped
    let top = 0
    while (top < MOST_LEVELS - 1 && FANOUT ** (top + 1) < pages) top += 1
    this.#top = top
  }

  /** Makes room for more pages: what there is becomes the first child of a new root. */
  grow(pages: number): void {
    while (this.#top < MOST_LEVELS - 1 && FANOUT ** (this.#top + 1) < pages) {
      if (this.#planted) {
        const child = this.#newNode(0)
        for (let index = 0; index < FANOUT; index += 1) {
          this.#setWord(child, index, this.#word(0, index))
          this.#setWord(0, index, 0)
        }
        this.#setWord(0, 0, child)
      }
      this.#top += 1
      this.#leafGroup = -1
    }
  }

  /** The entry of `page`; 0 where none was set. */
  get(page: number): number {
    const group = Math.floor(page / FANOUT)
    if (group !== this.#leafGroup) {
      if (!this.#planted) {
        this.span = Number.MAX_SAFE_INTEGER
        return 0
      }
      let node = 0
      for (let level = this.#top; level > 0; level -= 1) {
        const size = spanOf(level)
        const word = this.#word(node, (page / size) & INDEX)
        if (word <= 0) {
          this.span = size - (page % size)
          return word
        }
        node = word
      }
      this.#leaf = node
      this.#leafGroup = group
    }
    this.span = 1
    return this.#word(this.#leaf, page & INDEX)
  }

  /** Sets the entry of one page. What it was before is the caller's to account for. */
  set(page: number, entry: number): void {
    const group = Math.floor(page / FANOUT)
    if (group !== this.#leafGroup) {
      assert(this.#planted, 'the tree was planted')
      let node = 0
      for (let level = this.#top; level > 0; level -= 1) {
        const index = (page / spanOf(level)) & INDEX
        const word = this.#word(node, index)
        node = word > 0 ? word : this.#split(node, index, word)
      }
      this.#leaf = node
      this.#leafGroup = group
    }
    this.#setWord(this.#leaf, page & INDEX, entry)
  }

  /** Sets the entries of pages [first, end) to `entry`, which is 0 or negative. */
  fill(first: number, end: number, entry: number): void {
    assert(entry <= 0, 'only such entries stand for many pages')
    if (first >= end) return
    assert(this.#planted, 'the tree was planted')
    this.#leafGroup = -1
    this.#fillNode(0, this.#top, 0, first, end, entry)
  }

  /** Makes the root. Has to be called while the arena is new, before anything else takes a slot. */
  plant(): void {
    if (this.#planted) return
    const root = this.#newNode(0)
    assert(root === 0, 'the root is the first node of the first slot')
    this.#planted = true
  }

  /** Forgets everything; the nodes go back with the arena. */
  reset(): void {
    this.#planted = false
    this.#nodesLeft = 0
    this.#freeNodes = []
    this.#leafGroup = -1
  }

  /** `base` is the first page below `node`; [first, end) lies within the node. */
  #fillNode(
    node: number,
    level: number,
    base: number,
    first: number,
    end: number,
    entry: number,
  ): void {
    const size = spanOf(level)
    const last = Math.ceil((end - base) / size)
    for (let index = Math.floor((first - base) / size); index < last; index += 1) {
      const childBase = base + index * size
      const childEnd = childBase + size
      const word = this.#word(node, index)
      if (first <= childBase && end >= childEnd) {
        if (level > 0 && word > 0) this.#dropNode(word, level - 1)
        else if (word !== 0) this.#dropped(word, size)
        this.#setWord(node, index, entry)
        continue
      }
      // Only above the leaves can a range end inside a word.
      const from = Math.max(first, childBase)
      const until = Math.min(end, childEnd)
      if (word === entry) {
        if (word !== 0) this.#dropped(word, until - from)
        continue
      }
      const child = word > 0 ? word : this.#split(node, index, word)
      this.#fillNode(child, level - 1, childBase, from, until, entry)
    }
  }

  /** Frees a node with all below it. */
  #dropNode(node: number, level: number): void {
    const size = spanOf(level)
    for (let index = 0; index < FANOUT; index += 1) {
      const word = this.#word(node, index)
      if (level > 0 && word > 0) this.#dropNode(word, level - 1)
      else if (word !== 0) this.#dropped(word, size)
    }
    this.#freeNodes.push(node)
  }

  /** Puts a child under a word that stood for all its pages. */
  #split(node: number, index: number, entry: number): number {
    const child = this.#newNode(entry)
    this.#setWord(node, index, child)
    return child
  }

  #newNode(entry: number): number {
    const node = this.#freeNodes.pop() ?? this.#freshNode()
    const start = (node & NODES_PER_SLAB_MASK) << NODE_SHIFT
    this.#words(node).fill(entry, start, start + FANOUT)
    return node
  }

  #freshNode(): number {
    if (this.#nodesLeft === 0) {
      this.#nextNode = this.#arena.allocate() * NODES_PER_PAGE
      this.#nodesLeft = NODES_PER_PAGE
    }
    this.#nodesLeft -= 1
    this.#nextNode += 1
    return this.#nextNode - 1
  }

  #words(node: number): Int32Array {
    const slab = this.#arena.slabs[node >>> SLAB_SHIFT]
    assert(slab !== undefined, 'a node lies in a slab')
    return slab.words
  }

  #word(node: number, index: number): number {
    return this.#words(node)[((node & NODES_PER_SLAB_MASK) << NODE_SHIFT) | index] ?? 0
  }

  #setWord(node: number, index: number, word: number): void {
    this.#words(node)[((node & NODES_PER_SLAB_MASK) << NODE_SHIFT) | index] = word
  }
}

function spanOf(level: number): number {
  const span = SPANS[level]
  assert(span !== undefined, 'the tree has that level')
  return span
}
