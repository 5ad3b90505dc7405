/**
 * Every program that can be compiled must be one that the kernel's verifier takes. Nothing is attached here.
 *
 * In guests on 5.10, 6.12 and newest only: it takes long, and these verifiers differ most.
 */
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import test, { type TestContext } from 'node:test'
import { Assembler, Label } from '../../lib/capture/bpf.js'
import { type CaptureProgram, compileCapture, STATS_VALUE_BYTES, splitShapes } from '../../lib/capture/compile.js'
import { emitFilter } from '../../lib/capture/filter-code.js'
import { parseFilter } from '../../lib/capture/filter-parse.js'
import { type Arch, type BoundOperand, bindOperands, functionArguments, parseOperands, symbolsOf } from '../../lib/capture/operands.js'
import type { CaptureShape } from '../../lib/capture/shape.js'
import { loadNative } from '../../lib/native.js'
import {
  BPF_LICENSE,
  BPF_MAP_TYPE_HASH,
  BPF_MAP_TYPE_PERCPU_ARRAY,
  BPF_MAP_TYPE_RINGBUF,
  BPF_PROG_TYPE_KPROBE,
  BPF_TRACE_UPROBE_MULTI,
  createMap,
  loadProgram,
} from '../../lib/register/bpf-objects.js'
import { multiSupport } from '../../lib/register/multi-support.js'
import { HAS_SLEEPABLE } from '../support/features.js'
import { needs } from '../support/needs.js'

const arch: Arch = process.arch === 'arm64' ? 'arm64' : 'x64'
const RING_BYTES = 1 << 20
const INSN_BYTES = 8

// Uprobes take programs that may sleep since 6.0.
const sleepableWorks = HAS_SLEEPABLE

/** Every form of operand that was seen, and rarer ones. */
function everyForm(): BoundOperand[] {
  const seen = readFileSync(join(__dirname, 'fixtures', arch === 'x64' ? 'argforms-x86_64.txt' : 'argforms-aarch64.txt'), 'utf8')
  const rare =
    arch === 'x64'
      ? [
          '8@(%rax,%rdx,8)',
          '8@0(,%rax,8)',
          '8@0x7fffffffffff(%rax)',
          '1@%ah',
          '-1@%bh',
          '8@%rsp',
          '8@$0x7fffffffffffffff',
          '8@far+0x100000000(%rip)',
          '8@%xmm0',
        ]
      : ['8@[x0, x1]', '8@[x0, x1, lsl 3]', '8@[x0, 140737488355327]', '8@sp', '4@w30', '8@xzr', '8@d0']
  const examples = [
    ...seen
      .trim()
      .split('\n')
      .map((line) => line.split('\t')[2] ?? ''),
    ...rare,
  ]
  const operands = examples.flatMap((example) => parseOperands(example, arch))
  return bindOperands(operands, 0x4000n, new Map([...symbolsOf(operands)].map((name, index) => [name, BigInt(index) * 0x1000n])))
}

/** Loads programs into the kernel, as ones that may sleep and as ones that may not, against maps that go when the test is over. Returns the size of the larger. */
function loader(t: TestContext): (options: Partial<CaptureProgram> & Pick<CaptureProgram, 'shapes'>) => Promise<number> {
  const native = loadNative()
  const fds: number[] = []
  const statsFd = createMap(native, {
    type: BPF_MAP_TYPE_PERCPU_ARRAY,
    keyBytes: 4,
    valueBytes: STATS_VALUE_BYTES,
    maxEntries: 4096,
    name: 'test_stats',
  })
  const ringFd = createMap(native, { type: BPF_MAP_TYPE_RINGBUF, keyBytes: 0, valueBytes: 0, maxEntries: RING_BYTES, name: 'test_ring' })
  fds.push(statsFd, ringFd)
  t.after(() => native.closeFds(fds))
  return async (options) => {
    const attach = options.attach ?? 'perf'
    const expectedAttachType = attach === 'multi' ? BPF_TRACE_UPROBE_MULTI : 0
    let size = 0
    for (const sleepable of sleepableWorks ? [false, true] : [false]) {
      const insns = compileCapture({
        ...{ arch, attach, probeId: 1, slot: 0, statsFd, ringFd, ringBytes: RING_BYTES, excludeTid: null, sleepable },
        ...options,
      })
      const program = { type: BPF_PROG_TYPE_KPROBE, expectedAttachType, insns, license: BPF_LICENSE, name: 'test_capture', sleepable }
      native.closeFd(await loadProgram(native, program))
      size = insns.length / INSN_BYTES
    }
    return size
  }
}

/** A shape of its own for each index. */
function variedShape(index: number, operands: number): CaptureShape {
  const text = Array.from({ length: operands }, (_, place) =>
    arch === 'x64' ? `8@${index + 8 * place}(%rsp)` : `8@[sp, ${index + 8 * place}]`,
  ).join(' ')
  return { operands: bindOperands(parseOperands(text, arch), 0n, new Map()), strings: [], stringLimit: 256 }
}

/** Why programs for links cannot be tried, or `false`. */
async function noLinks(): Promise<string | false> {
  const { allProcesses, reason } = await multiSupport(loadNative())
  return allProcesses ? false : (reason ?? 'there is no uprobe_multi link')
}

test('takes every form of operand, alone', needs(), async (t) => {
  const load = loader(t)
  for (const operand of everyForm()) await load({ shapes: [{ operands: [operand], strings: [], stringLimit: 256 }] })
})

test('takes every form of operand as a string, short and long', needs(), async (t) => {
  const load = loader(t)
  for (const operand of everyForm()) {
    for (const stringLimit of [1, 256, 4096]) await load({ shapes: [{ operands: [operand], strings: [0], stringLimit }] })
  }
})

test('takes every form of operand in a filter', needs(), async (t) => {
  const load = loader(t)
  for (const operand of everyForm()) {
    if (operand.kind === 'unsupported' || operand.float) continue
    for (const filter of ['arg0 > -5', 'arg0 == 0xffffffffffffffff || !(arg0 <= 7 && tid != 5) || pid < 3']) {
      await load({ shapes: [{ operands: [operand], strings: [], stringLimit: 256 }], filter: parseFilter(filter) })
    }
  }
})

test('takes as many operands in memory as are read, all of them filtered and recorded', needs(), async (t) => {
  const load = loader(t)
  const filter = parseFilter(Array.from({ length: 31 }, (_, index) => `arg${index} > ${index}`).join(' || '))
  await load({ shapes: [variedShape(1, 31)], filter })
})

const LARGEST_FILTERS = [
  // As many comparisons as the text has room for, of memory and of strings.
  Array.from({ length: 370 }, (_, index) => `arg${index % 31}>${index}`).join('||'),
  Array.from({ length: 210 }, (_, index) => `str(arg${index % 31})!="${index}"`).join('&&'),
  Array.from({ length: 26 }, (_, index) => `str(arg${index})=="${'x'.repeat(128)}"`).join('||'),
  Array.from({ length: 180 }, (_, index) => `arg${index % 31}/arg${index % 7}>-${index}`).join('||'),
  // Ways that part and meet again.
  Array.from({ length: 90 }, (_, index) => `(arg${index % 31} > ${index} || comm == "${index}" || !cpu)`).join(' && '),
  // As many intermediate results as there can be, and as deep as it can be.
  `arg0 == ${'(arg1 - '.repeat(15)}arg2${')'.repeat(15)}`,
  `${'!('.repeat(31)}arg0 % arg1 < arg2 - cpu && comm != "x"${')'.repeat(31)}`,
]

for (const [index, text] of LARGEST_FILTERS.entries()) {
  test(`takes large filters (${index})`, needs(), async (t) => {
    const load = loader(t)
    const size = await load({ shapes: [variedShape(1, 31)], filter: parseFilter(text) })
    t.diagnostic(`${size} instructions`)
  })
}

// Without the second attempt at each read a filter of 4,096 characters does not get that large.
const largest = sleepableWorks ? needs() : { skip: 'this kernel has no uprobe programs that may sleep' }

test('takes the largest filter before the largest record, and refuses a larger one', largest, async (t) => {
  const load = loader(t)
  const strings = Array.from({ length: 15 }, (_, index) => index)
  const shapes = [{ ...variedShape(1, 31), strings, stringLimit: 4096 }]
  const product = Array.from({ length: 60 }, (_, index) => `arg${index % 10}`).join('*')
  const products = (count: number): string => Array.from({ length: count }, () => product).join('||')
  let count = 1
  let size = 0
  await assert.rejects(
    async () => {
      for (; ; count++) size = await load({ shapes, filter: parseFilter(products(count)) })
    },
    { code: 'ERR_UPROBE_BAD_OPTION', message: /^Option filter: column 1: the filter makes \d+ instructions, and 16000 are possible\n/ },
  )
  t.diagnostic(`${count - 1} products of 60 numbers, ${size} instructions`)
  assert.ok(size > 15_000 && size < 32_767)
})

test('takes every operator and every kind of comparison', needs(), async (t) => {
  const load = loader(t)
  const operands = bindOperands(
    parseOperands(arch === 'x64' ? '8@%rdi -8@%rsi 8@8(%rsp) -8@16(%rsp)' : '8@x0 -8@x1 8@[sp, 8] -8@[sp, 16]', arch),
    0n,
    new Map(),
  )
  const shapes = [{ operands, strings: [], stringLimit: 256 }]
  const numbers = ['arg0', 'arg1', 'arg3', 'cpu', '-1', '0xffffffffffffffff']
  for (const left of numbers) {
    for (const right of numbers) {
      const conditions = [...['+', '-', '*', '/', '%', '&', '|', '^', '<<', '>>'].map((operator) => `(${left}) ${operator} (${right})`)]
      for (const relation of ['==', '!=', '<', '<=', '>', '>=']) conditions.push(`(${left}) ${relation} (${right})`)
      for (const condition of conditions) {
        await load({ shapes, filter: parseFilter(condition) })
        await load({ shapes, filter: parseFilter(`!(${condition}) && arg0`), ringFd: null, ringBytes: 0 })
      }
    }
  }
})

test('takes the largest record', needs(), async (t) => {
  const load = loader(t)
  const strings = Array.from({ length: 15 }, (_, index) => index)
  await load({ shapes: [{ ...variedShape(1, 31), strings, stringLimit: 4096 }] })
})

test('takes a program that counts only, with a filter and without', needs(), async (t) => {
  const load = loader(t)
  await load({ shapes: [variedShape(1, 2)], ringFd: null, ringBytes: 0 })
  await load({ shapes: [variedShape(1, 2)], ringFd: null, ringBytes: 0, filter: parseFilter('arg1 == 3') })
})

test('takes a program that leaves out a thread', needs(), async (t) => {
  const load = loader(t)
  await load({ shapes: [variedShape(1, 2)], excludeTid: 2 ** 22 })
})

test('takes programs for links, of 1 to 200 shapes', needs(), async (t) => {
  const without = await noLinks()
  if (without !== false) return t.skip(without)
  const load = loader(t)
  for (const count of [1, 2, 3, 7, 64, 200]) {
    const shapes = Array.from({ length: count }, (_, index) => variedShape(index, index % 4))
    await load({ attach: 'multi', shapes })
    await load({ attach: 'multi', shapes, ringFd: null, ringBytes: 0 })
  }
})

test('takes strings of every limit and a filter, behind 71 shapes in programs for links', needs(), async (t) => {
  const without = await noLinks()
  if (without !== false) return t.skip(without)
  const load = loader(t)
  const filter = parseFilter('arg0 > 3 || arg1 != 5')
  const base = { arch, probeId: 1, statsFd: 0, ringFd: 0, ringBytes: RING_BYTES, excludeTid: 77, filter, sleepable: sleepableWorks }
  for (const stringLimit of [1, 256, 4096]) {
    const shapes = Array.from({ length: 71 }, (_, index) => ({ ...variedShape(index, 4), strings: [0, 2, 3], stringLimit }))
    for (const group of splitShapes(shapes, base)) await load({ attach: 'multi', shapes: group, filter, excludeTid: 77 })
  }
})

test('divides shapes among programs that the kernel takes, each as full as possible', needs(), async (t) => {
  const without = await noLinks()
  if (without !== false) return t.skip(without)
  const load = loader(t)
  const shapes = Array.from({ length: 600 }, (_, index) => variedShape(index, 12))
  const base = { arch, probeId: 1, statsFd: 0, ringFd: 0, ringBytes: RING_BYTES, excludeTid: null, sleepable: sleepableWorks }
  const groups = splitShapes(shapes, base)
  assert.deepEqual(groups.flat(), shapes)
  assert.ok(groups.length > 1)
  const sizes: number[] = []
  for (const group of groups) sizes.push(await load({ attach: 'multi', shapes: group }))
  for (const size of sizes) assert.ok(size < 32_767, `${size} instructions`)
  for (const size of sizes.slice(0, -1)) assert.ok(size > 29_000, `${size} instructions`)
})

for (const depth of [2, 127, 512]) {
  for (const atEntry of [false, true]) {
    test(
      `takes a walk over a stack of up to ${depth} frames${atEntry ? ', from the first instruction of a function' : ''}`,
      needs(),
      async (t) => {
        const load = loader(t)
        const native = loadNative()
        const seenFd = createMap(native, { type: BPF_MAP_TYPE_HASH, keyBytes: 16, valueBytes: 8, maxEntries: 16, name: 'test_seen' })
        t.after(() => native.closeFd(seenFd))
        const stacks = { seenFd, sinkId: 2, secrets: [1n << 63n, 2n, 0xdead_beef_dead_beefn, 3n] as const }
        const operands = bindOperands(functionArguments(arch), 0n, new Map())
        for (const strings of [[], [0, 1, 2, 3]]) {
          await load({
            shapes: [{ operands, strings, stringLimit: 4096, stack: { depth, atEntry } }],
            stacks,
            filter: parseFilter('str(arg0) == "x"'),
          })
        }
      },
    )
  }
}

test('the arguments of a function and a string take few instructions', () => {
  const shape = { operands: bindOperands(functionArguments(arch).slice(0, 2), 0n, new Map()), strings: [], stringLimit: 256 }
  const insns = compileCapture({
    arch,
    attach: 'perf',
    probeId: 1,
    slot: 0,
    shapes: [shape],
    statsFd: 3,
    ringFd: 4,
    ringBytes: RING_BYTES,
    excludeTid: null,
  })
  assert.ok(insns.length / 8 <= 64, `${insns.length / 8} instructions`)
})

test('a comparison of an argument in a register with a number takes two instructions', () => {
  const shape = { operands: bindOperands(functionArguments(arch).slice(0, 1), 0n, new Map()), strings: [], stringLimit: 256 }
  const asm = new Assembler()
  emitFilter(asm, { arch }, shape, parseFilter('arg0 > 100'), new Label(), new Label())
  assert.equal(asm.length, 2)
})
