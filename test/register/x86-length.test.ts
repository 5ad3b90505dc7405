/**
 * The length decoder against objdump: over real code, and over every opcode with the prefixes and operands that change a length.
 */
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, it } from 'node:test'
import fc from 'fast-check'
import { instructionLength, isNop, MAX_INSTRUCTION_BYTES } from '../../lib/register/x86-length.js'

interface Disassembled {
  readonly address: number
  readonly bytes: Uint8Array
  readonly text: string
}

const OBJDUMP_LINE = /^ *([0-9a-f]+):\t((?:[0-9a-f]{2} )+) *(?:\t(.*))?$/

/** Runs objdump with `args`; one instruction a line (-w), zeros included (-z). */
function* disassemble(args: readonly string[]): Generator<Disassembled> {
  const { stdout, stderr, status } = spawnSync('objdump', ['-z', '-w', ...args], { encoding: 'latin1', maxBuffer: 2 ** 29 })
  assert.equal(status, 0, stderr)
  let from = 0
  while (from < stdout.length) {
    const to = stdout.indexOf('\n', from)
    const [, address, bytes, text = ''] = OBJDUMP_LINE.exec(stdout.slice(from, to)) ?? []
    if (address !== undefined && bytes !== undefined) {
      yield { address: Number.parseInt(address, 16), bytes: Buffer.from(bytes.replaceAll(' ', ''), 'hex'), text }
    }
    from = to + 1
  }
}

function hasObjdump(): boolean {
  return spawnSync('objdump', ['--info'], { encoding: 'latin1' }).stdout?.includes('elf64-x86-64') ?? false
}

const needsObjdump = { skip: hasObjdump() || process.env.CI === 'true' ? false : 'objdump of binutils for x86-64 is not installed' }

/** Libraries and the program of this very process: code that every machine with tests has. */
function mappedFile(name: string): string {
  const line = readFileSync('/proc/self/maps', 'utf8')
    .split('\n')
    .find((candidate) => candidate.includes(`/${name}`))
  const path = line?.slice(line.indexOf('/'))
  assert.ok(path, `this process maps no ${name}`)
  return path
}

/** fwait is an instruction of its own; objdump joins it with the floating point instruction behind it. */
function lengthByObjdump({ bytes, text }: Disassembled): number {
  return bytes[0] === 0x9b && !text.startsWith('fwait') ? 1 : bytes.length
}

function hex(bytes: Uint8Array): string {
  return Buffer.from(bytes).toString('hex')
}

/** Asserts that each instruction has the length that objdump found, and returns how many were compared. */
function compare(instructions: Iterable<Disassembled>): number {
  let compared = 0
  const different: string[] = []
  for (const instruction of instructions) {
    // Data between functions is not code, and objdump says so.
    if (instruction.text.includes('(bad)')) continue
    compared++
    const padded = new Uint8Array(instruction.bytes.length + MAX_INSTRUCTION_BYTES)
    padded.set(instruction.bytes)
    const length = instructionLength(padded, 0)
    if (length !== lengthByObjdump(instruction) && different.length < 20) {
      different.push(`0x${instruction.address.toString(16)} ${hex(instruction.bytes)} ${instruction.text}: decoded as ${length}`)
    }
  }
  assert.deepEqual(different, [])
  return compared
}

describe('instructionLength', () => {
  const onX64 = process.arch === 'x64' ? needsObjdump : { skip: 'the libraries of this machine are not x86-64 code' }

  it('agrees with objdump on every instruction of libc', onX64, () => {
    assert.ok(compare(disassemble(['-d', '-j', '.text', mappedFile('libc.so.6')])) > 200_000)
  })

  it('agrees with objdump on every instruction of libstdc++', onX64, () => {
    assert.ok(compare(disassemble(['-d', '-j', '.text', mappedFile('libstdc++.so.6')])) > 100_000)
  })

  it('agrees with objdump on 2 MiB of the node program', onX64, () => {
    const header = spawnSync('objdump', ['-h', '-w', '-j', '.text', process.execPath], { encoding: 'latin1' }).stdout
    const [, size = '', address = ''] = /\.text +([0-9a-f]+) +([0-9a-f]+)/.exec(header) ?? []
    const start = Number.parseInt(address, 16) + Math.floor(Number.parseInt(size, 16) / 2)
    const range = [`--start-address=${start}`, `--stop-address=${start + 2 ** 21}`]
    assert.ok(compare(disassemble(['-d', '-j', '.text', ...range, process.execPath])) > 300_000)
  })

  it('agrees with objdump on every opcode of every map, with each prefix and operand form', needsObjdump, (t) => {
    const directory = mkdtempSync(join(tmpdir(), 'uprobe-opcodes-'))
    try {
      const slots = [...opcodeSlots()]
      const path = join(directory, 'opcodes.bin')
      writeFileSync(path, Buffer.concat(slots))
      const compared = compare(slotStarts(disassemble(['-D', '-b', 'binary', '-m', 'i386:x86-64', path])))
      t.diagnostic(`${compared} of ${slots.length} forms are instructions`)
      assert.ok(compared > 150_000)
    } finally {
      rmSync(directory, { recursive: true })
    }
  })

  const forms: ReadonlyArray<[name: string, bytes: string, length: number | null]> = [
    ['ret', 'c3', 1],
    ['a REX prefix before another prefix, which loses its W', '4866b83412', 5],
    ['REX.W beside 66, which it overrides', '6648b81122334455667788', 11],
    ['mov of a 64-bit immediate', '48b81122334455667788', 10],
    ['mov from an absolute address', 'a01122334455667788', 9],
    ['the same with 32-bit addresses', '67a011223344', 6],
    ['a branch with a 66 prefix, on which processors differ', '66e811223344', null],
    ['the call of __tls_get_addr with its padding prefixes', '666648e811223344', 8],
    ['fwait alone', '9b', 1],
    ['pop of a register by 8f', '8fc0', 2],
    ['VEX after a 66 prefix', '66c5f877', null],
    ['EVEX of the APX map', '62f47c0801c0', null],
    ['REX2', 'd50001c0', null],
    ['an opcode that 64-bit mode has not', '06', null],
    ['fifteen prefixes', '66'.repeat(15), null],
    ['fourteen prefixes and a nop', `${'66'.repeat(14)}90`, 15],
    ['fifteen prefixes and a nop', `${'66'.repeat(15)}90`, null],
    ['nothing', '', null],
  ]
  for (const [name, bytes, length] of forms) {
    it(`gives ${length === null ? 'none' : length} for ${name}`, () =>
      assert.equal(instructionLength(Buffer.from(bytes, 'hex'), 0), length))
  }

  it('gives none for an instruction that is cut off at any byte', () => {
    for (const bytes of ['48b81122334455667788', 'c4e27d18842411223344', '62f17c48108424112233', '0f84112233', '8f', 'c5', '62']) {
      const whole = Buffer.from(bytes, 'hex')
      const cut = instructionLength(Buffer.concat([whole, Buffer.alloc(16)]), 0) ?? whole.length + 1
      for (let length = 0; length < Math.min(cut, whole.length); length++)
        assert.equal(instructionLength(whole.subarray(0, length), 0), null)
    }
  })

  it('never reaches beyond the bytes it is given', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 32 }), fc.nat(40), (bytes, offset) => {
        const length = instructionLength(bytes, offset)
        assert.ok(length === null || (length > 0 && length <= MAX_INSTRUCTION_BYTES && offset + length <= bytes.length))
      }),
    )
  })
})

/**
 * The instruction at the start of each slot of 16 bytes. Prefixes that objdump shows alone say nothing about lengths, and for a near branch with a 66 prefix
 * it follows AMD, while the decoder gives none.
 */
function* slotStarts(instructions: Iterable<Disassembled>): Generator<Disassembled> {
  const onlyPrefixes = /^(?:(?:rex[.\w]*|data16|addr32|lock|repz?|repnz|[cdefgs]s)\s*)+$/
  const shortenedBranch = /^(?:26|2e|36|3e|4[0-7]|6[457]|f[023])*66(?:26|2e|36|3e|4[0-7]|6[4-7]|f[023])*(?:e[89]|0f8)/
  for (const instruction of instructions) {
    const skipped = onlyPrefixes.test(instruction.text) || shortenedBranch.test(hex(instruction.bytes))
    if (instruction.address % 16 === 0 && !skipped) yield instruction
  }
}

const NOP = 0x90

/** Every opcode with every prefix and ModRM form that may change its length, each in 16 bytes that end in nops. */
function* opcodeSlots(): Generator<Buffer> {
  // mod and rm: memory, SIB, SIB without a base, relative to rip, with a displacement of 1 and 4 bytes, a register
  const operands = [[0x00], [0x04, 0x00], [0x04, 0x25], [0x05], [0x40], [0x44, 0x24], [0x80], [0x84, 0x24], [0xc0]]
  const legacyPrefixes = [[], [0x66], [0x67], [0xf2], [0xf3], [0x48], [0x66, 0x48], [0x41], [0xf3, 0x48]]
  for (const escapeBytes of [[], [0x0f], [0x0f, 0x38], [0x0f, 0x3a]]) {
    for (let opcode = 0; opcode < 256; opcode++) {
      for (const prefix of legacyPrefixes) {
        for (const [modrm = 0, ...sib] of operands) {
          for (const field of [0, 1, 2, 5]) yield slot([...prefix, ...escapeBytes, opcode, modrm | (field << 3), ...sib])
        }
      }
    }
  }
  for (let opcode = 0; opcode < 256; opcode++) {
    for (const [modrm = 0, ...sib] of operands) {
      for (const pp of [0, 1, 2, 3]) {
        const rest = [opcode, modrm, ...sib]
        yield slot([0xc5, 0xf8 | pp, ...rest])
        for (const map of [1, 2, 3]) {
          for (const w of [0, 0x80]) {
            yield slot([0xc4, 0xe0 | map, w | 0x78 | pp, ...rest])
            yield slot([0x62, 0xf0 | map, w | 0x7c | pp, 0x48, ...rest])
          }
        }
        for (const map of [5, 6]) yield slot([0x62, 0xf0 | map, 0x7c | pp, 0x48, ...rest])
      }
      for (const map of [8, 9, 10]) yield slot([0x8f, 0xe0 | map, 0x78, opcode, modrm, ...sib])
    }
  }
}

function slot(bytes: readonly number[]): Buffer {
  return Buffer.alloc(16, NOP).fill(Buffer.from(bytes), 0, bytes.length)
}

describe('isNop', () => {
  const nops = [
    '90',
    '6690',
    '666690',
    'f390',
    '0f1f00',
    '0f1f4000',
    '0f1f440000',
    '660f1f440000',
    '0f1f8000000000',
    '662e0f1f840000000000',
    '66666690',
    '2e2e2e2e90',
    'f30f1efa',
    '0f18440000',
    '0f19c0',
    '4889c0',
    '4d89ff',
    '488d642400',
    '488d742600',
    '488d36',
    'e900000000',
    'eb00',
  ]
  for (const bytes of nops) {
    it(`knows ${bytes} as one`, () => {
      const code = Buffer.from(bytes, 'hex')
      assert.equal(instructionLength(code, 0), code.length)
      assert.equal(isNop(code, 0, code.length), true)
    })
  }

  const others: ReadonlyArray<[bytes: string, why: string]> = [
    ['4190', 'exchanges %r8 and %rax'],
    ['e900000001', 'jumps somewhere else'],
    ['4889c1', 'moves to another register'],
    ['4989c0', 'moves to another register by REX.B'],
    ['488d642408', 'adds to the stack pointer'],
    ['488d440000', 'adds an index'],
    ['488d0500000000', 'loads the instruction pointer'],
    ['0f0d4000', 'is a prefetch of another range'],
    ['cc', 'is a breakpoint'],
    ['', 'is nothing'],
  ]
  for (const [bytes, why] of others) {
    it(`does not take ${bytes || 'no byte'} for one, which ${why}`, () => {
      const code = Buffer.from(bytes, 'hex')
      assert.equal(isNop(code, 0, code.length), false)
    })
  }
})
