/**
 * Bars with their spread, as an SVG: one bar below the other, in groups, on one scale.
 *
 * Written as text, since the picture is a few rectangles. The colours are readable on white and carry no meaning alone: the labels say whose a bar is. A bar longer than the scale ends in
 * a gap and says its value all the same, so that one slow tracer does not make all the others look alike.
 */
import type { Bar, BarGroup } from './report.js'

const WIDTH = 860
const LABELS = 270
const VALUES = 120
const ROW = 22
const BAR = 14
const GROUP_HEAD = 34
const TOP = 56
const BOTTOM = 44
const PLOT = WIDTH - LABELS - VALUES

const COLOUR: Readonly<Record<Bar['by'], string>> = { uprobe: '#1f6feb', peer: '#9aa4af', C: '#d0d7de' }

/** A picture's text and scale. */
export interface Picture {
  readonly title: string
  readonly subtitle: string
  /** What the numbers are, with the unit. */
  readonly axis: string
}

/** Draws the groups. */
export function drawBars({ title, subtitle, axis }: Picture, groups: readonly BarGroup[]): string {
  const scale = scaleOf(groups)
  const x = (value: number): number => round((Math.min(value, scale.end) / scale.end) * PLOT + LABELS)
  const parts: string[] = []
  let y = TOP
  for (const { title: head, bars } of groups) {
    parts.push(text(16, y + GROUP_HEAD - 12, head, 'class="head"'))
    y += GROUP_HEAD
    for (const bar of bars) {
      parts.push(drawBar(bar, y, x, scale.end))
      y += ROW
    }
  }
  const ticks = scale.ticks.flatMap((tick) => [
    `<line x1="${x(tick)}" y1="${TOP}" x2="${x(tick)}" y2="${y + 6}" class="grid"/>`,
    text(x(tick), y + 20, tick.toLocaleString('en-US'), 'class="tick" text-anchor="middle"'),
  ])
  const height = y + BOTTOM
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${height}" width="${WIDTH}" height="${height}" role="img" aria-label="${escapeXml(title)}">`,
    `<style>${STYLE}</style>`,
    `<rect width="${WIDTH}" height="${height}" fill="#ffffff"/>`,
    text(16, 26, title, 'class="title"'),
    text(16, 44, subtitle, 'class="tick"'),
    ...ticks,
    ...parts,
    text(LABELS, height - 8, axis, 'class="tick"'),
    '</svg>',
    '',
  ].join('\n')
}

const STYLE = [
  'text{font:12px ui-sans-serif,system-ui,"DejaVu Sans",sans-serif;fill:#1f2328}',
  '.title{font-size:16px;font-weight:600}.head{font-size:13px;font-weight:600}',
  '.tick{fill:#59636e;font-size:11px}.own{font-weight:600}',
  '.grid{stroke:#e4e8ec}.spread{stroke:#1f2328;stroke-width:1.2}',
].join('')

function drawBar({ label, by, value }: Bar, y: number, x: (value: number) => number, end: number): string {
  const middle = y + ROW / 2
  const top = middle - BAR / 2
  const style = by === 'uprobe' ? ' class="own"' : ''
  const parts = [
    text(LABELS - 8, middle + 4, label, `text-anchor="end"${style}`),
    `<rect x="${LABELS}" y="${top}" width="${round(x(value.median) - LABELS)}" height="${BAR}" fill="${COLOUR[by]}"/>`,
  ]
  if (value.median > end) {
    // A white gap near the end of a bar that goes on.
    const gap = x(end) - 14
    parts.push(`<path d="M${gap} ${top - 1} l6 0 l-4 ${BAR + 2} l-6 0 z" fill="#ffffff"/>`)
  } else {
    const [from, to] = [x(value.lowerQuartile), x(value.upperQuartile)]
    parts.push(`<path d="M${from} ${middle} H${to} M${from} ${middle - 4} v8 M${to} ${middle - 4} v8" class="spread" fill="none"/>`)
  }
  const behind = value.median > end ? x(end) : Math.max(x(value.median), x(value.upperQuartile))
  parts.push(text(behind + 6, middle + 4, Math.round(value.median).toLocaleString('en-US'), style.trim()))
  return parts.join('\n')
}

/** A scale for most of the bars: those beyond three times the middle one do not stretch it. */
export function scaleOf(groups: readonly BarGroup[]): { end: number; ticks: number[] } {
  const values = groups.flatMap(({ bars }) => bars.map(({ value }) => value.median)).sort((a, b) => a - b)
  const middle = values[Math.floor(values.length / 2)]
  if (middle === undefined || middle <= 0) throw new RangeError('there is nothing to draw')
  const longest = values.filter((value) => value <= 3 * middle).at(-1) ?? middle
  const step = niceStep(longest / 5)
  const count = Math.ceil((longest * 1.05) / step)
  return { end: count * step, ticks: Array.from({ length: count + 1 }, (_, index) => index * step) }
}

/** The next larger of 1, 2, 2.5 and 5 times a power of ten. */
function niceStep(least: number): number {
  const power = 10 ** Math.floor(Math.log10(least))
  return power * ([1, 2, 2.5, 5, 10].find((factor) => factor * power >= least) ?? 10)
}

function text(x: number, y: number, content: string, attributes: string): string {
  return `<text x="${round(x)}" y="${round(y)}"${attributes === '' ? '' : ` ${attributes}`}>${escapeXml(content)}</text>`
}

function round(value: number): number {
  return Math.round(value * 10) / 10
}

function escapeXml(content: string): string {
  return content.replace(/[&<>"]/g, (character) => ({ '&': '&amp;', '<': '&lt;', '>': '&gt;' })[character] ?? '&quot;')
}
