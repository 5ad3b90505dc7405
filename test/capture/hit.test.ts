/**
 * Decoding records: what a consumer sees of the bytes that the kernel wrote.
 */
import assert from 'node:assert/strict'
import test from 'node:test'
import { inspect } from 'node:util'
import fc from 'fast-check'
import { argsToJson } from '../../lib/capture/arguments.js'
import { type Hit, HitDecoder } from '../../lib/capture/hit.js'
import { BatchMemory } from '../../lib/capture/memory.js'
import { bindOperands, parseOperands } from '../../lib/capture/operands.js'
import { layoutOf } from '../../lib/capture/record.js'
import { RecordOffsets } from '../../lib/capture/record-offsets.js'
import type { CaptureShape } from '../../lib/capture/shape.js'
import type { ProbeSite } from '../../lib/probe-site.js'
import { batchOf, type RecordContent } from './records.js'

const site: ProbeSite = { probe: 'usdt:t:probe', path: '/opt/program', fileOffset: 0x1139n, refCtrOffset: null, args: null, targets: [] }

function shapeOf(args: string, strings: readonly number[] = [], stringLimit = 256): CaptureShape {
  return { operands: bindOperands(parseOperands(args, 'x64'), 0n, new Map()), strings, stringLimit }
}

/** Decodes one record. */
function hitOf(shape: CaptureShape, content: RecordContent): Hit {
  const decoder = new HitDecoder([{ shape }], () => site)
  return decoder.open(new BatchMemory(batchOf(shape, [content]))).hit(8)
}

const ONES = 0xffff_ffff_ffff_ffffn
/** The highest bit of each size is set, and above it there is something else. */
const MIXED = 0x8181_8181_f1f1_9180n

for (const [args, raw, expected] of [
  ['1@%al', MIXED, 0x80],
  ['-1@%al', MIXED, -0x80],
  ['2@%ax', MIXED, 0x9180],
  ['-2@%ax', MIXED, 0x9180 - 0x1_0000],
  ['4@%eax', MIXED, 0xf1f1_9180],
  ['-4@%eax', MIXED, 0xf1f1_9180 - 0x1_0000_0000],
  ['8@%rax', MIXED, MIXED],
  ['-8@%rax', MIXED, MIXED - (1n << 64n)],
  ['-1@%al', ONES, -1],
  ['-2@%ax', ONES, -1],
  ['-4@%eax', ONES, -1],
  ['-8@%rax', ONES, -1n],
  ['8@%rax', ONES, ONES],
  ['-4@%eax', 0x7fff_ffffn, 2 ** 31 - 1],
  ['8@%rax', 5n, 5n],
  ['4f@%eax', 0xdead_beef_3fc0_0000n, 1.5],
  ['4f@%eax', 0xc048_f5c3n, Math.fround(-3.14)],
  ['8f@%rax', 0x4009_21fb_5444_2d18n, Math.PI],
  ['8f@%rax', 0xfff0_0000_0000_0000n, -Infinity],
  ['8f@%rax', 0x7ff8_0000_0000_0000n, NaN],
  ['-4@-20(%rbp)', 0xffff_fff6n, -10],
  ['-8@8(%rsp)', ONES, -1n],
  ['-4@$-1', ONES, -1],
  ['4@$-1', ONES, 0xffff_ffff],
] as const) {
  test(`shows ${args} of 0x${raw.toString(16)} as ${String(expected)}${typeof expected === 'bigint' ? 'n' : ''}`, () => {
    assert.deepEqual(hitOf(shapeOf(args), { values: [raw] }).args, [expected])
  })
}

test('shows what could not be read by its address, and what cannot be read by its operand, in their places', () => {
  const shape = shapeOf('4@%eax 8f@%xmm0 -4@8(%rbx) 2@%cx')
  const { args } = hitOf(shape, { values: [1n, 0n, 0x7fff_1234_5678n, 4n], unreadable: [2] })
  assert.deepEqual(args, [1, { unsupported: '8f@%xmm0' }, { unreadable: '0x7fff12345678' }, 4])
})

test('reads as many arguments as there are operands, each from its place', () => {
  const values = [1n, 2n, 3n, 4n, 5n]
  for (let count = 0; count <= values.length; count++) {
    const shape = shapeOf(Array.from({ length: count }, () => '-4@%eax').join(' '))
    assert.deepEqual(hitOf(shape, { values: values.slice(0, count) }).args, values.slice(0, count).map(Number))
    const unreadable = hitOf(shape, { values: values.slice(0, count), unreadable: [1] }).args[1]
    assert.deepEqual(unreadable, count > 1 ? { unreadable: '0x2' } : undefined)
  }
})

test('reads the 31st operand and its flag', () => {
  const shape = shapeOf(Array.from({ length: 33 }, (_, index) => `4@${index}(%rsp)`).join(' '))
  const { args } = hitOf(shape, { values: Array.from({ length: 33 }, (_, index) => BigInt(index)), unreadable: [30] })
  assert.equal(args.length, 33)
  assert.equal(args[29], 29)
  assert.deepEqual(args[30], { unreadable: '0x1e' })
  assert.deepEqual(args[31], { unsupported: '4@31(%rsp)' })
})

const limited = shapeOf('8@%rdi', [0], 5)
const TOO_LONG = 5 + 2 // what the helper returns for a string that fills the area

for (const [what, bytes, returned, expected] of [
  ['an empty string', '', undefined, ''],
  ['a string below the limit', 'abc', undefined, 'abc'],
  ['a string of exactly the limit', 'abcde', undefined, 'abcde'],
  ['one byte too many', 'abcdef', TOO_LONG, { string: 'abcde', truncated: true }],
  ['a character of two bytes that just fits', 'abcé', undefined, 'abcé'],
  ['a character of two bytes that is cut', 'abcdé', TOO_LONG, { string: 'abcd', truncated: true }],
  ['a character of three bytes that is cut', 'abc€', TOO_LONG, { string: 'abc', truncated: true }],
  ['a character of four bytes that is cut', 'ab😀', TOO_LONG, { string: 'ab', truncated: true }],
  ['a character of four bytes that ends where the limit is', 'a😀x', TOO_LONG, { string: 'a😀', truncated: true }],
] as const) {
  test(`decodes ${what}`, () => {
    assert.deepEqual(
      hitOf(limited, { values: [0x1000n], strings: { 0: { bytes: Buffer.from(bytes), ...(returned === undefined ? {} : { returned }) } } })
        .args,
      [expected],
    )
  })
}

test('decodes invalid UTF-8 lossily, and has its bytes', () => {
  const bytes = Buffer.from([0x61, 0xff, 0xfe, 0x62])
  const hit = hitOf(limited, { values: [0x1000n], strings: { 0: { bytes } } })
  assert.deepEqual(hit.args, ['a\ufffd\ufffdb'])
  assert.deepEqual(hit.bytes(0), bytes)
})

test('has the bytes of a cut string up to the limit, in the middle of a character', () => {
  const hit = hitOf(limited, { values: [0x1000n], strings: { 0: { bytes: Buffer.from('abc€'), returned: TOO_LONG } } })
  assert.deepEqual(hit.bytes(0), Buffer.from('abc€').subarray(0, 5))
})

test('has bytes of strings only', () => {
  const hit = hitOf(shapeOf('8@%rdi 8@%rsi 8@%xmm0', [1, 2], 16), { values: [0n, 0n, 0n] })
  assert.equal(hit.bytes(0), null)
  assert.equal(hit.bytes(1), null) // unreadable
  assert.equal(hit.bytes(2), null)
  assert.equal(hit.bytes(3), null)
})

test('shows a string that could not be read by its pointer', () => {
  const shape = shapeOf('8@%rdi 8@%rsi', [0, 1], 16)
  const hit = hitOf(shape, { values: [0n, 0xdead_0000n], strings: { 0: { bytes: new Uint8Array(), returned: -14 } }, unreadable: [1] })
  assert.deepEqual(hit.args, [{ unreadable: '0x0' }, { unreadable: '0xdead0000' }])
})

test('an address in a register is as wide as the operand', () => {
  const hit = hitOf(shapeOf('4@%edi', [0], 16), { values: [0xffff_ffff_0000_1000n] })
  assert.deepEqual(hit.args, [{ unreadable: '0x1000' }])
})

test('finds strings in small records and in full ones', () => {
  const shape = shapeOf('8@%rdi 4@%esi 8@%rdx', [0, 2], 4096)
  const { full, small } = layoutOf(shape)
  assert.ok(small !== null && small.bytes < 1024 && full.bytes > 8192)
  const long = 'x'.repeat(4096)
  const strings = { 0: { bytes: Buffer.from('select 1') }, 2: { bytes: Buffer.from('y'.repeat(254)) } }
  assert.deepEqual(hitOf(shape, { values: [1n, 7n, 2n], strings, small: true }).args, ['select 1', 7, 'y'.repeat(254)])
  assert.deepEqual(hitOf(shape, { values: [1n, 7n, 2n], strings: { ...strings, 2: { bytes: Buffer.from(long) } } }).args, [
    'select 1',
    7,
    long,
  ])
})

test('a string that grew while it was read into a small record is truncated', () => {
  const shape = shapeOf('8@%rdi', [0], 4096)
  const hit = hitOf(shape, { values: [1n], strings: { 0: { bytes: Buffer.from('z'.repeat(255)), returned: 256 } }, small: true })
  assert.deepEqual(hit.args, [{ string: 'z'.repeat(254), truncated: true }])
})

test('refuses records that are too large', () => {
  const args = '8@%rdi '.repeat(16)
  const all = Array.from({ length: 16 }, (_, index) => index)
  assert.throws(() => layoutOf(shapeOf(args, all, 4096)), { code: 'ERR_UPROBE_BAD_OPTION', message: /65[_,]?536/ })
  assert.ok(layoutOf(shapeOf(args, all.slice(1), 4096)).full.bytes <= 65_536)
})

test('has the fields of the head', () => {
  const hit = hitOf(shapeOf(''), { time: 0xfedc_ba98_7654_3210n, pid: 4_000_000, tid: 4_000_001, cpu: 127, comm: 'postgres' })
  assert.equal(hit.timestamp, 0xfedc_ba98_7654_3210n)
  assert.equal(hit.pid, 4_000_000)
  assert.equal(hit.tid, 4_000_001)
  assert.equal(hit.cpu, 127)
  assert.equal(hit.comm, 'postgres')
  assert.equal(hit.probe, 'usdt:t:probe')
  assert.equal(hit.site, site)
  assert.deepEqual(hit.args, [])
})

test('a comm of 15 bytes and one that is not UTF-8 are whole', () => {
  assert.equal(hitOf(shapeOf(''), { comm: 'abcdefghijklmno' }).comm, 'abcdefghijklmno')
  assert.equal(hitOf(shapeOf(''), { comm: Buffer.from([0x61, 0xff]) }).comm, 'a\ufffd')
})

test('becomes JSON with the documented fields, in which nothing is lost', () => {
  const shape = shapeOf('-4@%edi 8@%rsi 8@%rdx 8@%rcx 8f@%r8 8f@%xmm0 4@(%rax)', [3], 4)
  const hit = hitOf(shape, {
    time: 12_345_678_901_234_567_890n,
    pid: 42,
    tid: 43,
    cpu: 1,
    comm: 'worker',
    values: [0xffff_ffffn, 1n << 53n, (1n << 53n) - 1n, 0x1000n, 0x7ff8_0000_0000_0000n, 0n, 0x10n],
    strings: { 3: { bytes: Buffer.from('abcdef'), returned: 6 } },
    unreadable: [6],
  })
  assert.equal(
    JSON.stringify(hit),
    '{"time":"12345678901234567890","pid":42,"tid":43,"cpu":1,"comm":"worker","probe":"usdt:t:probe","path":"/opt/program",' +
      '"args":[-1,"9007199254740992",9007199254740991,{"string":"abcd","truncated":true},"NaN",{"unsupported":"8f@%xmm0"},{"unreadable":"0x10"}]}',
  )
})

test('arguments become JSON: numbers up to 2^53, decimal strings beyond', () => {
  const most = BigInt(Number.MAX_SAFE_INTEGER)
  assert.deepEqual(argsToJson([most, most + 1n, -most, -most - 1n, 1.5, Infinity, -Infinity, 'text']), [
    Number.MAX_SAFE_INTEGER,
    '9007199254740992',
    Number.MIN_SAFE_INTEGER,
    '-9007199254740992',
    1.5,
    'Infinity',
    '-Infinity',
    'text',
  ])
})

test('is inspected with its fields', () => {
  const text = inspect(hitOf(shapeOf('-4@%edi'), { time: 5n, pid: 42, comm: 'worker', values: [7n] }))
  for (const part of ['timestamp: 5n', 'pid: 42', "comm: 'worker'", "probe: 'usdt:t:probe'", 'args: [ 7 ]'])
    assert.ok(text.includes(part), text)
})

test('decodes records of several sites by their slot', () => {
  const shapes = [shapeOf('-4@%edi'), shapeOf('8@%rsi 1@%dl')]
  const decoder = new HitDecoder(
    shapes.map((shape) => ({ shape })),
    (slot) => ({ ...site, probe: `usdt:t:p${slot}` }),
  )
  const [first, second] = shapes
  assert.ok(first !== undefined && second !== undefined)
  const one = decoder.open(new BatchMemory(batchOf(first, [{ slot: 0, values: [1n] }])))
  const two = decoder.open(new BatchMemory(batchOf(second, [{ slot: 1, values: [2n, 3n] }])))
  assert.deepEqual(
    [two.hit(8), one.hit(8)].map((hit) => [hit.probe, hit.args]),
    [
      ['usdt:t:p1', [2n, 3]],
      ['usdt:t:p0', [1]],
    ],
  )
  const counts = new Float64Array(2)
  two.countSlots(RecordOffsets.listed(Uint32Array.of(8, 8, 8)), 1, 3, counts)
  one.countSlots(RecordOffsets.listed(Uint32Array.of(8)), 0, 1, counts)
  assert.deepEqual([...counts], [1, 2])
  assert.throws(() => decoder.open(new BatchMemory(batchOf(first, [{ slot: 2 }]))).hit(8).args, RangeError)
})

test('shows a string exactly as it is for every limit', () => {
  fc.assert(
    fc.property(fc.string({ unit: 'grapheme', maxLength: 40 }), fc.integer({ min: 1, max: 64 }), (text, limit) => {
      const bytes = Buffer.from(text.replaceAll('\0', ''))
      // As the helper does: at most limit + 2 bytes, the last one a NUL.
      const returned = Math.min(bytes.length + 1, limit + 2)
      const hit = hitOf(shapeOf('8@%rdi', [0], limit), {
        values: [1n],
        strings: { 0: { bytes: bytes.subarray(0, returned - 1), returned } },
      })
      const [shown] = hit.args
      assert.deepEqual(hit.bytes(0), bytes.subarray(0, limit))
      if (bytes.length <= limit) {
        assert.equal(shown, bytes.toString())
      } else {
        assert.ok(typeof shown === 'object' && 'string' in shown && shown.truncated)
        assert.ok(bytes.toString().startsWith(shown.string))
        assert.ok(Buffer.byteLength(shown.string) > limit - 4)
      }
    }),
  )
})

test('has the same arguments each time they are asked for', () => {
  const hit = hitOf(shapeOf('8@%rdi', [0], 16), { values: [1n], strings: { 0: { bytes: Buffer.from('select 1') } } })
  assert.equal(hit.args, hit.args)
})

for (const limit of [150, 700])
  test(`shows every string of a batch, whatever stands beside it and whichever is read first, up to ${limit} bytes`, () => {
    // They are read together with their neighbours, a kilobyte at a time, unless they are long, or not ASCII.
    const shape = shapeOf('8@%rdi -4@%esi 8@%rdx', [0, 2], limit)
    const { full } = layoutOf(shape)
    const step = 8 + Math.ceil(full.bytes / 8) * 8
    const ascii = fc.string({ unit: 'grapheme-ascii', maxLength: limit, size: 'max' })
    const other = fc.tuple(ascii, fc.nat(limit)).map(([text, at]) => `${text.slice(0, at)}é${text.slice(at)}`.slice(0, limit - 1))
    const text = fc.oneof(ascii, other)
    fc.assert(
      fc.property(fc.array(fc.tuple(text, text), { minLength: 1, maxLength: 12 }), fc.infiniteStream(fc.nat(11)), (texts, order) => {
        const strings = texts.map(([first, last]) => ({ 0: { bytes: Buffer.from(first) }, 2: { bytes: Buffer.from(last) } }))
        const batch = batchOf(
          shape,
          strings.map((both, index) => ({ values: [1n, BigInt(index), 2n], strings: both })),
        )
        const records = new HitDecoder([{ shape }], () => site).open(new BatchMemory(batch))
        for (const nth of order.take(24)) {
          const index = nth % texts.length
          const [first, last] = texts[index] ?? []
          assert.deepEqual(records.hit(8 + index * step).args, [first, index, last])
        }
      }),
      { endOnFailure: true },
    )
  })
