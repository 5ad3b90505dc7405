/**
 * Text as the command line prints it: what a traced program chose (arguments, names, paths) must not be able to drive the terminal that shows it.
 *
 * A terminal obeys escape sequences, and a viewer obeys bidirectional controls, so in the human form every such character is written as `\xNN` or
 * `\u{N}`. In JSON a string is already closed against C0 controls; C1 controls, DEL, bidirectional controls and line separators are legal there and
 * would reach the terminal raw, so they are written as `\uXXXX`, which every JSON parser reads back as the same character.
 */
import type { ArgumentValue } from '../index.js'
import { escapeForDisplay } from '../log.js'

const UNSAFE_IN_JSON = /[\u007f-\u009f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]/g

/** One JSON object as one line, without the newline, safe to show on a terminal. */
export function jsonLine(value: object): string {
  return JSON.stringify(value).replace(UNSAFE_IN_JSON, (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, '0')}`)
}

/**
 * A message as one safe line. Messages of this package already show hostile text escaped, so a backslash stays as it is; control characters, which
 * only a foreign message can hold, are escaped.
 */
export function singleLine(message: string): string {
  return message.split('\\').map(escapeForDisplay).join('\\')
}

/** A string from a target in double quotes. */
export function quoted(text: string): string {
  return `"${escapeForDisplay(text).replaceAll('"', '\\"')}"`
}

/** An argument of a hit as people read it: `42`, `"text"`, `"cut off"…`, `<unreadable 0x0>`, `<unsupported 8f@%xmm0>`. */
export function displayArg(arg: ArgumentValue): string {
  if (typeof arg === 'number' || typeof arg === 'bigint') return String(arg)
  if (typeof arg === 'string') return quoted(arg)
  if ('string' in arg) return `${quoted(arg.string)}…`
  if ('unreadable' in arg) return `<unreadable ${arg.unreadable}>`
  return `<unsupported ${escapeForDisplay(arg.unsupported)}>`
}

/** A whole number as JSON can hold it: beyond 2^53 a decimal string. */
export function jsonInteger(value: bigint): number | string {
  const exact = Number(value)
  return Number.isSafeInteger(exact) ? exact : value.toString()
}

/** An offset or address as the JSON output writes it: `0x…`, or `null` where there is none. */
export function hex(value: bigint): string
export function hex(value: bigint | null): string | null
export function hex(value: bigint | null): string | null {
  return value === null ? null : `0x${value.toString(16)}`
}

/** A number and its noun, in the plural unless it is one. */
export function plural(count: number | bigint, noun: string): string {
  return `${count} ${noun}${Number(count) === 1 ? '' : 's'}`
}

/** Rows as lines whose columns are aligned; the last column is left as it is. */
export function alignColumns(rows: readonly (readonly string[])[]): string[] {
  const widths: number[] = []
  for (const row of rows) {
    row.forEach((cell, column) => {
      widths[column] = Math.max(widths[column] ?? 0, cell.length)
    })
  }
  return rows.map((row) =>
    row
      .map((cell, column) => (column === row.length - 1 ? cell : cell.padEnd(widths[column] ?? 0)))
      .join('  ')
      .trimEnd(),
  )
}
