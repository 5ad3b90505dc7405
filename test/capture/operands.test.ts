/**
 * Parsing operands: every form that was seen in the packages of a distribution, rarer ones, and text that nobody would write.
 */
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import test from 'node:test'
import fc from 'fast-check'
import {
  type Arch,
  bindOperands,
  functionArguments,
  type Operand,
  parseOperands,
  returnValue,
  symbolsOf,
} from '../../lib/capture/operands.js'
import { renderArm64, renderX64 } from './render.js'

/** How many notes had an operand of a form, the form, and an example of it. */
function argumentForms(name: string): { form: string; example: string }[] {
  const lines = readFileSync(join(__dirname, 'fixtures', name), 'utf8')
    .trim()
    .split('\n')
  return lines.map((line) => {
    const [, form = '', example = ''] = line.split('\t')
    return { form, example }
  })
}

const render: Record<Arch, (operand: Operand) => string> = { x64: renderX64, arm64: renderArm64 }

for (const [arch, file, count] of [
  ['x64', 'argforms-x86_64.txt', 38],
  ['arm64', 'argforms-aarch64.txt', 28],
] as const) {
  test(`understands every operand form that was seen on ${arch}`, () => {
    const forms = argumentForms(file)
    assert.equal(forms.length, count)
    for (const { form, example } of forms) {
      const operands = parseOperands(example, arch)
      assert.equal(operands.length, 1, form)
      assert.notEqual(operands[0]?.kind, 'unsupported', form)
      assert.deepEqual(operands.map(render[arch]), [example], form)
    }
  })

  test(`keeps the operands of ${arch} apart when all forms stand in one note`, () => {
    const examples = argumentForms(file).map(({ example }) => example)
    assert.deepEqual(parseOperands(examples.slice(0, 31).join(' '), arch).map(render[arch]), examples.slice(0, 31))
  })
}

/** What an operand is, without its text and what is as usual. */
function summary(operand: Operand | undefined): unknown {
  if (operand === undefined || operand.kind === 'unsupported') return operand?.kind
  const { text: _, kind, size, signed, float, ...place } = operand
  return [kind, `${signed ? '-' : ''}${size}${float ? 'f' : ''}`, ...Object.values(place)]
}

for (const [arch, text, expected] of [
  ['x64', '8@(%rax,%rdx,8)', ['memory', '8', 'rax', 'rdx', 8, 0n]],
  ['x64', '8@-0x10(%rax,%rdx,4)', ['memory', '8', 'rax', 'rdx', 4, -16n]],
  ['x64', '8@0x7f(%r12)', ['memory', '8', 'r12', null, 1, 127n]],
  ['x64', '8@0(,%rax,8)', ['memory', '8', null, 'rax', 8, 0n]],
  ['x64', '1@%ah', ['register', '1', 'rax', 8]],
  ['x64', '-1@%dh', ['register', '-1', 'rdx', 8]],
  ['x64', '1@%sil', ['register', '1', 'rsi', 0]],
  ['x64', '2@%bp', ['register', '2', 'rbp', 0]],
  ['x64', '-2@%r15w', ['register', '-2', 'r15', 0]],
  ['x64', '8@%rsp', ['register', '8', 'rsp', 0]],
  ['x64', '8f@%rax', ['register', '8f', 'rax', 0]],
  ['x64', '4@$0xffffffff', ['constant', '4', 0xffffffffn]],
  ['x64', '-8@$-9223372036854775808', ['constant', '-8', 1n << 63n]],
  ['x64', '4@sym+4(%rip)', ['symbol', '4', 'sym', 4n]],
  ['x64', '4@4+sym(%rip)', ['symbol', '4', 'sym', 4n]],
  ['x64', '4@-4+sym(%rip)', ['symbol', '4', 'sym', -4n]],
  ['x64', '-4@sym-0x10(%rip)', ['symbol', '-4', 'sym', -16n]],
  ['x64', '8@_ZN2v88internal3FLAGE.part.0(%rip)', ['symbol', '8', '_ZN2v88internal3FLAGE.part.0', 0n]],
  ['x64', '%eax', ['register', '4', 'rax', 0]],
  ['x64', '%ah', ['register', '1', 'rax', 8]],
  ['x64', '16(%rsp)', ['memory', '8', 'rsp', null, 1, 16n]],
  ['arm64', '8@[x0, x1]', ['memory', '8', 'x0', 'x1', 1, 0n]],
  ['arm64', '8@[x0, x1, lsl 3]', ['memory', '8', 'x0', 'x1', 8, 0n]],
  ['arm64', '8@[x29, #-16]', ['memory', '8', 'x29', null, 1, -16n]],
  ['arm64', '8@[sp]', ['memory', '8', 'sp', null, 1, 0n]],
  ['arm64', '4@w3', ['register', '4', 'x3', 0]],
  ['arm64', 'w3', ['register', '4', 'x3', 0]],
  ['arm64', '8@lr', ['register', '8', 'x30', 0]],
  ['arm64', '8@sp', ['register', '8', 'sp', 0]],
  ['arm64', '8@xzr', ['constant', '8', 0n]],
  ['arm64', '-4@-1', ['constant', '-4', (1n << 64n) - 1n]],
] as const) {
  test(`parses ${text} (${arch})`, () => {
    assert.deepEqual(summary(parseOperands(text, arch)[0]), expected)
  })
}

for (const [arch, text] of [
  ['x64', '8f@%xmm0'],
  ['x64', '16@%xmm0'],
  ['x64', '4@%st'],
  ['x64', '3@%eax'],
  ['x64', '1f@%al'],
  ['x64', '8@%eax'], // half of the value would be made up
  ['x64', '8@%rax,'],
  ['x64', '8@%fs:40'],
  ['x64', '8@$.LC0'],
  ['x64', '8@$99999999999999999999999'],
  ['x64', '8@(%eax)'],
  ['x64', '8@(%rax,%rcx,3)'],
  ['x64', '8@(%rax,%rcx,8,1)'],
  ['x64', '8@()'],
  ['x64', '8@16(%rip)'],
  ['x64', '8@sym(%rip,%rax)'],
  ['x64', '8@sym'],
  ['x64', '8@'],
  ['x64', '@%rax'],
  ['arm64', '8@v0'],
  ['arm64', '8@d0'],
  ['arm64', '8@x31'],
  ['arm64', '8@w0'],
  ['arm64', '8@[x0'],
  ['arm64', '8@[w0]'],
  ['arm64', '8@[x0, 8]!'],
  ['arm64', '8@[x0, :lo12:sym]'],
  ['arm64', '8@[x0, 8, lsl 3]'],
  ['arm64', '8@[x0, x1, sxtw 2]'],
] as const) {
  test(`calls ${text} unsupported, and the operand behind it keeps its number (${arch})`, () => {
    const last = arch === 'x64' ? '4@%ecx' : '4@x2'
    const operands = parseOperands(`${text} ${last}`, arch)
    assert.equal(operands.length, 2)
    assert.equal(operands[0]?.kind, 'unsupported')
    assert.equal(operands[0]?.text, text)
    assert.equal(operands[1]?.kind, 'register')
  })
}

test('finds no operands in an empty note', () => {
  assert.deepEqual(parseOperands('', 'x64'), [])
  assert.deepEqual(parseOperands(' \t ', 'arm64'), [])
})

const size = fc.constantFrom(1 as const, 2 as const, 4 as const, 8 as const)
const offset = fc.bigInt(-(1n << 31n), (1n << 31n) - 1n)
const scale = fc.constantFrom(1 as const, 2 as const, 4 as const, 8 as const)

/** Operands of one architecture, without their text. */
function operands(arch: Arch): fc.Arbitrary<Operand> {
  const registers =
    arch === 'x64'
      ? ['rax', 'rbx', 'rcx', 'rdx', 'rsi', 'rdi', 'rbp', 'r8', 'r9', 'r10', 'r11', 'r12', 'r13', 'r14', 'r15']
      : Array.from({ length: 31 }, (_, index) => `x${index}`)
  const register = fc.constantFrom(...registers)
  const format = fc.record({ size, signed: fc.boolean(), float: fc.constant(false), text: fc.constant('') })
  const place: fc.Arbitrary<object> = fc.oneof(
    fc.record({ kind: fc.constant('constant'), value: fc.bigInt(0n, (1n << 64n) - 1n) }),
    fc.record({ kind: fc.constant('register'), register, shift: fc.constant(0) }),
    fc.record({ kind: fc.constant('memory'), base: register, index: fc.constant(null), scale: fc.constant(1), displacement: offset }),
    fc.record({
      kind: fc.constant('memory'),
      base: register,
      index: register,
      scale,
      displacement: arch === 'x64' ? offset : fc.constant(0n),
    }),
    ...(arch === 'x64' ? [fc.record({ kind: fc.constant('symbol'), symbol: fc.stringMatching(/^[A-Za-z_][\w.$]{0,20}$/), offset })] : []),
  )
  return fc.tuple(format, place).map(([a, b]) => ({ ...a, ...b }) as Operand)
}

for (const arch of ['x64', 'arm64'] as const) {
  test(`parses what was written (${arch})`, () => {
    fc.assert(
      fc.property(fc.array(operands(arch), { maxLength: 12 }), (written) => {
        const text = written.map(render[arch]).join(' ')
        const parsed = parseOperands(text, arch).map((operand) => ({ ...operand, text: '' }))
        assert.deepEqual(parsed, written)
      }),
      { numRuns: 500 },
    )
  })

  test(`never throws, and keeps the text of what it does not understand (${arch})`, () => {
    const pieces = fc.constantFrom(
      '8@',
      '-4@',
      '4f@',
      '%rax',
      '%xmm1',
      '$',
      '(',
      ')',
      '[',
      ']',
      ',',
      ' ',
      '\t',
      '-',
      '+',
      '0x',
      '9'.repeat(30),
      'sym',
      '(%rip)',
      'x0',
      'lsl 3',
      '\0',
      '@',
    )
    const hostile = fc.oneof(
      fc.string({ unit: 'binary', maxLength: 200 }),
      fc.array(pieces, { maxLength: 40 }).map((parts) => parts.join('')),
    )
    fc.assert(
      fc.property(hostile, (text) => {
        for (const operand of parseOperands(text, arch)) assert.ok(text.includes(operand.text))
      }),
      { numRuns: 2000 },
    )
  })

  test(`an operand with a bracket that is not closed does not swallow the next one (${arch})`, () => {
    const [broken, sound] = arch === 'x64' ? ['8@8(%rax', '4@%ecx'] : ['8@[x0, 8', '4@x2']
    assert.deepEqual(
      parseOperands(`${broken} ${sound}`, arch).map(({ text }) => text),
      [broken, sound],
    )
  })
}

test('looks at a bounded number of operands, in bounded time', () => {
  const start = performance.now()
  for (const text of [
    '8@%rax '.repeat(1_000_000),
    '('.repeat(1_000_000),
    '8@('.repeat(300_000),
    '8@[x0, '.repeat(100_000),
    '8@$1+'.repeat(100_000),
  ]) {
    for (const arch of ['x64', 'arm64'] as const) assert.ok(parseOperands(text, arch).length <= 64)
  }
  assert.ok(performance.now() - start < 1000, 'ten hostile notes took longer than a second')
})

test('binds a symbol to its distance from the probed instruction', () => {
  const parsed = parseOperands('-4@40+CheckpointStats(%rip) 8@gone(%rip) 8@%rax', 'x64')
  assert.deepEqual(symbolsOf(parsed), new Set(['CheckpointStats', 'gone']))
  const [stats, gone, register] = bindOperands(parsed, 0x4000n, new Map([['CheckpointStats', 0x1000n]]))
  assert.deepEqual(stats, {
    kind: 'pc-relative',
    size: 4,
    signed: true,
    float: false,
    text: '-4@40+CheckpointStats(%rip)',
    delta: 0x1000n + 40n - 0x4000n,
  })
  assert.equal(gone?.kind, 'unsupported')
  assert.equal(gone?.text, '8@gone(%rip)')
  assert.equal(register?.kind, 'register')
})

test('knows where functions have their arguments and their result', () => {
  assert.deepEqual(functionArguments('x64').map(renderX64), ['8@%rdi', '8@%rsi', '8@%rdx', '8@%rcx', '8@%r8', '8@%r9'])
  assert.deepEqual(functionArguments('arm64').map(renderArm64), ['8@x0', '8@x1', '8@x2', '8@x3', '8@x4', '8@x5', '8@x6', '8@x7'])
  assert.deepEqual(returnValue('x64').map(renderX64), ['8@%rax'])
  assert.deepEqual(returnValue('arm64').map(renderArm64), ['8@x0'])
})
