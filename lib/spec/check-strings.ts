/**
 * Whether what is asked for as a string can be one.
 */
import type { CaptureShape } from '../capture/shape.js'
import { UprobeError } from '../errors.js'
import { escapeForDisplay } from '../log.js'
import type { AttachSettings } from '../options.js'
import type { Site } from '../register/site.js'
import type { ProbeSpec } from './spec.js'

const POINTER_BYTES = 8

/** What the warning of {@link checkStrings} has in it. */
export const HARDLY_A_POINTER = 'is hardly a pointer'

/** An index in `strings` that no site has is a mistake; one that only some sites of a pattern have is not. Warns of one that is a pointer at no site. */
export function checkStrings(spec: ProbeSpec, settings: AttachSettings, sites: readonly Site[]): string[] {
  if (settings.strings.length === 0) return []
  const most = sites.reduce((longest, site) => Math.max(longest, site.shape.operands.length), 0)
  const beyond = settings.strings.find((argument) => argument >= most)
  if (beyond === undefined) {
    const shapes = new Set(sites.map(({ shape }) => shape))
    return settings.strings.flatMap((argument) => warnOfNumber(spec, argument, shapes) ?? [])
  }
  const has = most === 0 ? 'no arguments' : most === 1 ? 'argument 0 only' : `arguments 0 to ${most - 1}`
  throw new UprobeError('ERR_UPROBE_BAD_OPTION', `Option strings names argument ${beyond}, and ${escapeForDisplay(spec.text)} has ${has}.`)
}

/** Says if an argument is asked for as a string and is too short for a pointer, or a floating-point number, wherever it can be read. */
function warnOfNumber(spec: ProbeSpec, argument: number, shapes: ReadonlySet<CaptureShape>): string | null {
  let example: string | null = null
  for (const { operands } of shapes) {
    const operand = operands[argument]
    if (operand === undefined || operand.kind === 'unsupported') continue
    if (operand.size === POINTER_BYTES && !operand.float) return null
    example ??= `${operand.float ? 'a floating-point number' : `${operand.size} ${operand.size === 1 ? 'byte' : 'bytes'} wide`} (${escapeForDisplay(operand.text)})`
  }
  if (example === null) return null
  return `Option strings names argument ${argument} of ${escapeForDisplay(spec.text)}, which ${HARDLY_A_POINTER}: it is ${example}. Where nothing is mapped at such an address it is unreadable.`
}
