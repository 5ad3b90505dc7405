/**
 * Whether an address is the start of an instruction.
 *
 * The kernel decodes whatever lies at the address of a uprobe and puts a breakpoint over its first byte (`arch_uprobe_analyze_insn`,
 * arch/x86/kernel/uprobes.c). In the middle of an instruction that byte is part of an operand: nothing traps, and the program computes with another
 * operand from then on. So an address is used only if something vouches for it: the note of a USDT probe, the symbol of a function, or decoding forward from the
 * start of the function around it. On arm64 every instruction has four bytes, and alignment says it all.
 *
 * Decoding forward assumes that a function is code from its start to the site. Hand-written assembly may have data in between, which is then taken for
 * instructions; decoding mostly falls into step again after a few bytes, but it need not. That is why a refusal of this kind can be overridden.
 */
import { UprobeError } from '../errors.js'
import { escapeForDisplay } from '../log.js'
import type { SiteOrigin } from '../spec/find-sites.js'
import { instructionLength, MAX_INSTRUCTION_BYTES } from './x86-length.js'

/** A function, as a symbol gives it. */
export interface CodeFunction {
  readonly name: string
  readonly vaddr: bigint
}

/** Where code is read from: a file by its virtual addresses. */
export interface InstructionSource {
  readonly arch: 'x64' | 'arm64'
  /** For messages; escaped by whoever shows it. */
  readonly path: string
  /** Code from `vaddr` on: fewer bytes than `atMost` where the file has no more, none where it has no code. */
  readCode(vaddr: bigint, atMost: number): Promise<Uint8Array>
  /** The same where it is at hand; `null` where it has to be waited for. */
  peekCode?(vaddr: bigint, atMost: number): Uint8Array | null
  /** The first byte at a place in the file, where it is at hand. */
  peekByte?(fileOffset: bigint): number | null
  /** The function whose body holds `vaddr`; `null` if no symbol says. */
  functionContaining(vaddr: bigint): Promise<CodeFunction | null>
}

/** The address in question. */
export interface CodeSite {
  /** Resolved name without the path, as `uprobe:malloc+0x10`. */
  readonly probe: string
  readonly origin: SiteOrigin
  readonly vaddr: bigint
  readonly fileOffset: bigint
}

/** What decoding found out about an address. */
type Finding =
  | { readonly kind: 'start' }
  /** Instructions start at `before` and `after` and nowhere between. */
  | { readonly kind: 'inside'; readonly before: bigint; readonly after: bigint }
  /** Decoding came to bytes at `at` that it does not know. */
  | { readonly kind: 'unknown'; readonly at: bigint }

const ARM64_INSTRUCTION_BYTES = 4n
/** Read at once, and decoded in one turn of the event loop, in about a millisecond. */
const CHUNK_BYTES = 32 * 1024
/** Longest way that is decoded. No function is this long; the size of a symbol in a hostile file may be. */
const MAX_DECODED_BYTES = 16n * 1024n * 1024n

/**
 * Checks that `site` is the start of an instruction.
 * @returns `ERR_UPROBE_NOT_INSTRUCTION`, with the nearest starts where they are known; `null` if the site may be probed.
 */
export async function checkInstructionStart(source: InstructionSource, site: CodeSite): Promise<UprobeError | null> {
  if (source.arch === 'arm64') return checkAlignment(source, site)
  if (site.origin !== 'inside') return null
  const around = await source.functionContaining(site.vaddr)
  if (around === null || around.vaddr > site.vaddr) {
    const why = 'no symbol says which function it belongs to, so instructions cannot be told from its bytes'
    return refusal(source, site, `${why}. Probe a function by its name, or pass unsafe: true if a disassembler shows an instruction there`)
  }
  const finding = await locate(source, around.vaddr, site.vaddr)
  const name = escapeForDisplay(around.name)
  switch (finding.kind) {
    case 'start':
      return null
    case 'inside': {
      const nearest = [finding.before, finding.after].map((vaddr) => describePlace(site, name, around.vaddr, vaddr)).join(' and ')
      const why = `it lies inside an instruction, and a breakpoint there would change what the program computes. The nearest instructions start at ${nearest}`
      return refusal(
        source,
        site,
        `${why}. Probe one of these, or pass unsafe: true if the function has data in its code and a disassembler shows otherwise`,
      )
    }
    case 'unknown': {
      const where = describePlace(site, name, around.vaddr, finding.at)
      const why = `the code before it cannot be decoded from ${where} on, so it is not known to be the start of an instruction`
      return refusal(
        source,
        site,
        `${why}. Probe the function by its name, or pass unsafe: true if a disassembler shows an instruction there`,
      )
    }
  }
}

function checkAlignment(source: InstructionSource, site: CodeSite): UprobeError | null {
  const beyond = site.vaddr % ARM64_INSTRUCTION_BYTES
  if (beyond === 0n) return null
  const before = site.fileOffset - beyond
  const nearest = `0x${before.toString(16)} and 0x${(before + ARM64_INSTRUCTION_BYTES).toString(16)}`
  return refusal(source, site, `arm64 instructions start at multiples of 4. Probe one of the offsets ${nearest}`)
}

/** `malloc+0x4 (offset 0x9a124)`: as SYMBOL+OFFSET and as an offset in the file, since a specification may be written either way. */
function describePlace(site: CodeSite, name: string, start: bigint, vaddr: bigint): string {
  const fileOffset = site.fileOffset + (vaddr - site.vaddr)
  return `${name}+0x${(vaddr - start).toString(16)} (offset 0x${fileOffset.toString(16)})`
}

function refusal(source: InstructionSource, site: CodeSite, why: string): UprobeError {
  const path = escapeForDisplay(source.path)
  const where = `${escapeForDisplay(site.probe)} at ${path}:0x${site.fileOffset.toString(16)}`
  return new UprobeError('ERR_UPROBE_NOT_INSTRUCTION', `${where}: ${why}.`, { path, site: where })
}

/** Decodes from `start`, where an instruction begins, until `wanted` is reached or passed. */
async function locate(source: InstructionSource, start: bigint, wanted: bigint): Promise<Finding> {
  if (wanted - start > MAX_DECODED_BYTES) return { kind: 'unknown', at: start }
  let at = start
  let before = start
  while (at < wanted) {
    const chunk = await source.readCode(at, CHUNK_BYTES)
    const base = at
    // An instruction may reach beyond the chunk; it is decoded from the next one, which begins with it. The last chunk is short, and decoded to its end.
    const decodable = chunk.length < CHUNK_BYTES ? chunk.length : chunk.length - MAX_INSTRUCTION_BYTES
    let offset = 0
    while (offset < decodable && at < wanted) {
      const length = instructionLength(chunk, offset)
      if (length === null) return { kind: 'unknown', at }
      before = at
      offset += length
      at = base + BigInt(offset)
    }
    if (offset === 0) return { kind: 'unknown', at }
  }
  return at === wanted ? { kind: 'start' } : { kind: 'inside', before, after: at }
}
