/**
 * The names by which a differencing image knows its parent: the header has one, and the parent locators have others, each
 * for another platform (the specification's section "Parent Locator Entry").
 *
 * What is read here was written by somebody else: it is a list of paths to try, and no more than that.
 */

import { basename } from 'node:path/posix'

import { LOCATORS, type DynamicHeader, type Locator } from './dynamic-header.ts'

/** Bytes: longer than any path of the systems that make such images. */
const LONGEST_NAME = 16 * 1024

/** The platforms that we can read. W2ku: Windows, absolute; W2ru: Windows, relative; MacX: a file URL. */
const DECODERS: ReadonlyMap<string, (data: Buffer) => readonly string[]> = new Map([
  ['MacX', fromUrl],
  ['W2ku', (data: Buffer) => [fromWindows(utf16le(data))]],
  ['W2ru', (data: Buffer) => [fromWindows(utf16le(data))]],
])

/** Whether decodeLocator() can read it. */
export function isReadable({ code, dataLength }: Locator): boolean {
  return DECODERS.has(code) && dataLength > 0 && dataLength <= LONGEST_NAME
}

/** The paths that a locator's data stand for, in the order in which to try them. */
export function decodeLocator({ code }: Locator, data: Buffer): readonly string[] {
  return (DECODERS.get(code)?.(data) ?? []).filter((path) => path !== '')
}

/** The name in the header: without a folder, as a rule. */
export function decodeParentName({ parentName }: DynamicHeader): string {
  return fromWindows(utf16le(Buffer.from(parentName).swap16()))
}

/** The data of all locators that name `path`, relative to the image's folder or absolute, as vhd-util writes them. */
export function encodeLocators(path: string): readonly { code: string; data: Buffer }[] {
  const dotted = path.startsWith('/') || path.startsWith('.') ? path : `./${path}`
  const windows = Buffer.from(dotted.replaceAll('/', '\\'), 'utf16le')
  return [
    { code: 'MacX', data: Buffer.from(`file://${dotted}`, 'utf8') },
    { code: 'W2ku', data: windows },
    { code: 'W2ru', data: windows },
  ]
}

/** The last part of the path as the header's 512 bytes; cut where it is longer, as the locators have all of it. */
export function encodeParentName(path: string): Buffer {
  const field = Buffer.alloc(512)
  Buffer.from(basename(path), 'utf16le').copy(field, 0, 0, 510)
  return field.swap16()
}

/** The locators of a header, filled up with empty ones. */
export function fillLocators(used: readonly Locator[], empty: Locator): readonly Locator[] {
  return Array.from({ length: LOCATORS }, (_, index) => used[index] ?? empty)
}

/** Some write URLs with escapes, libvhd without: a name that contains `%20` may mean either. */
function fromUrl(data: Buffer): readonly string[] {
  const text = data.toString('utf8').replace(/\0.*$/s, '')
  if (!text.startsWith('file://')) return []
  const path = text.slice('file://'.length).replace(/^localhost(?=\/)/, '')
  try {
    const decoded = decodeURIComponent(path)
    return decoded === path || decoded.includes('\0') ? [path] : [path, decoded]
  } catch {
    return [path]
  }
}

function fromWindows(path: string): string {
  return path.replace(/^[a-zA-Z]:/, '').replaceAll('\\', '/')
}

/** Up to the first zero character. */
function utf16le(data: Buffer): string {
  return data.toString('utf16le').replace(/\0.*$/s, '')
}
