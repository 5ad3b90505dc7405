/**
 * The grammar of probe specifications.
 *
 *     usdt:[PATH:]PROVIDER:NAME            usdt:postgresql:query__start
 *     uprobe:[PATH:]SYMBOL[+OFFSET]        uprobe:/lib/x86_64-linux-gnu/libc.so.6:malloc
 *     uprobe:PATH:0xOFFSET                 uprobe:/usr/bin/node:0x8f21d0   (an offset in the file)
 *     uretprobe:[PATH:]SYMBOL              uretprobe:malloc
 *
 * This is how bpftrace and perf users write them. A specification is read from its right end, since only PATH may contain a colon. NAME, PROVIDER and
 * SYMBOL take `*` and `?`; a SYMBOL may name its version (`memcpy@GLIBC_2.2.5`). Parsing happens once, here; what is inside
 * the package trusts the type.
 */
import { UprobeError } from '../errors.js'
import { hasWildcard } from '../glob.js'
import { escapeForDisplay } from '../log.js'

/** Where in a file a probe is wanted. */
export type ProbePlace =
  | { readonly by: 'note'; readonly provider: string; readonly name: string }
  | { readonly by: 'symbol'; readonly symbol: string; readonly offset: bigint }
  | { readonly by: 'offset'; readonly fileOffset: bigint }

/** A parsed probe specification. */
export interface ProbeSpec {
  readonly kind: 'usdt' | 'uprobe' | 'uretprobe'
  /** The file, as written; `null` for the files that the target maps. */
  readonly path: string | null
  readonly place: ProbePlace
  /** Whether the name may stand for several probes. */
  readonly wildcard: boolean
  /** As the user wrote it. */
  readonly text: string
}

const LONGEST_SPEC = 8192

function badSpec(text: string, what: string): UprobeError {
  return new UprobeError(
    'ERR_UPROBE_BAD_SPEC',
    `${escapeForDisplay(text.slice(0, 200))}: ${what}. ` +
      'Write usdt:[PATH:]PROVIDER:NAME, uprobe:[PATH:]SYMBOL[+OFFSET], uprobe:PATH:0xOFFSET or uretprobe:[PATH:]SYMBOL.',
  )
}

/** Splits at the last colon: `['/a:b', 'c']` of `/a:b:c`, `[null, 'c']` of `c`. */
function splitLast(text: string): [string | null, string] {
  const colon = text.lastIndexOf(':')
  return colon < 0 ? [null, text] : [text.slice(0, colon), text.slice(colon + 1)]
}

/**
 * Parses a probe specification.
 * @throws {UprobeError} `ERR_UPROBE_BAD_SPEC`
 */
export function parseSpec(text: string): ProbeSpec {
  if (typeof text !== 'string') throw badSpec(String(text), 'a probe specification is a string')
  if (text.length > LONGEST_SPEC) throw badSpec(text, `longer than ${LONGEST_SPEC} characters`)
  if (text.includes('\0')) throw badSpec(text, 'contains a NUL character')
  const colon = text.indexOf(':')
  const kind = text.slice(0, colon)
  const rest = text.slice(colon + 1)
  switch (colon < 0 ? '' : kind) {
    case 'usdt':
      return parseUsdt(text, rest)
    case 'uprobe':
    case 'uretprobe':
      return parseFunction(text, kind as 'uprobe' | 'uretprobe', rest)
    default:
      throw badSpec(text, 'does not begin with usdt:, uprobe: or uretprobe:')
  }
}

function parseUsdt(text: string, rest: string): ProbeSpec {
  const [before, name] = splitLast(rest)
  if (before === null) throw badSpec(text, 'a USDT probe is named by its provider and its name')
  const [path, provider] = splitLast(before)
  if (provider === '' || name === '') throw badSpec(text, 'provider or name is empty (use * for any)')
  return {
    kind: 'usdt',
    path: checkPath(text, path),
    place: { by: 'note', provider, name },
    wildcard: hasWildcard(provider) || hasWildcard(name),
    text,
  }
}

function parseFunction(text: string, kind: 'uprobe' | 'uretprobe', rest: string): ProbeSpec {
  const [path, location] = splitLast(rest)
  const place = parseLocation(text, kind, location)
  if (place.by === 'offset' && path === null) throw badSpec(text, 'an offset in a file needs the PATH of the file')
  return {
    kind,
    path: checkPath(text, path),
    place,
    wildcard: place.by === 'symbol' && hasWildcard(place.symbol),
    text,
  }
}

function parseLocation(text: string, kind: 'uprobe' | 'uretprobe', location: string): ProbePlace {
  if (location === '') throw badSpec(text, 'the symbol is empty (use * for any)')
  if (/^0x/i.test(location)) {
    if (kind === 'uretprobe') throw badSpec(text, 'a return probe is put on a function, by its symbol')
    return { by: 'offset', fileOffset: parseNumber(text, location) }
  }
  // `malloc+0x10`; a name such as `operator+` never occurs, since symbols are written mangled.
  const plus = location.lastIndexOf('+')
  if (plus < 0) return { by: 'symbol', symbol: location, offset: 0n }
  const symbol = location.slice(0, plus)
  const offset = parseNumber(text, location.slice(plus + 1))
  if (symbol === '') throw badSpec(text, 'the symbol before + is empty')
  if (kind === 'uretprobe' && offset !== 0n) throw badSpec(text, 'a return probe is put on the start of a function')
  if (hasWildcard(symbol) && offset !== 0n) throw badSpec(text, 'a pattern cannot be combined with +OFFSET')
  return { by: 'symbol', symbol, offset }
}

function parseNumber(text: string, digits: string): bigint {
  if (!/^(0x[0-9a-f]{1,16}|[0-9]{1,19})$/i.test(digits)) throw badSpec(text, `${escapeForDisplay(digits)} is not an offset`)
  const value = BigInt(digits)
  if (value >= 1n << 63n) throw badSpec(text, 'the offset does not fit 63 bits')
  return value
}

function checkPath(text: string, path: string | null): string | null {
  if (path === '') throw badSpec(text, 'PATH is empty')
  return path
}
