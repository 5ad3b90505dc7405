/**
 * Tables in Markdown, for docs/performance.md.
 */
import { arch, cpus, release } from 'node:os'

/** A table of `head` and `rows`; all columns but the first are numbers. A row may be shorter: the other cells are empty. */
export function table(head: readonly string[], rows: ReadonlyArray<readonly string[]>): string {
  const widths = head.map((title, column) => Math.max(title.length, ...rows.map((row) => (row[column] ?? '').length)))
  const line = (cells: readonly string[]) =>
    `| ${head
      .map((_, column) => cells[column] ?? '')
      .map((cell, column) => (column === 0 ? cell.padEnd(widths[column] ?? 0) : cell.padStart(widths[column] ?? 0)))
      .join(' | ')} |`
  const rule = `|${widths.map((width, column) => (column === 0 ? '-'.repeat(width + 2) : `${'-'.repeat(width + 1)}:`)).join('|')}|`
  return [line(head), rule, ...rows.map(line)].join('\n')
}

/** On what it was measured. */
export function machine(): string {
  const processors = cpus()
  return `Linux ${release().split('-')[0]} on ${arch()}, ${processors.length} processors (${processors[0]?.model.trim() ?? 'unknown'}), Node ${process.versions.node}`
}
