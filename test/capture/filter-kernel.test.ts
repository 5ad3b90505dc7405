/**
 * Filters in the kernel, at real hits (test/targets/filtered.c): random ones let through exactly what a model in JavaScript lets through.
 *
 * In guests on 5.10, newest and arm64-6.12 only: it takes long, and the others lie between the first two.
 */
import assert from 'node:assert/strict'
import test from 'node:test'
import fc from 'fast-check'
import type { FilterCondition } from '../../lib/capture/filter.js'
import type { AttachOptions } from '../../lib/index.js'
import { buildTarget } from '../support/build.js'
import { HAS_MULTI } from '../support/features.js'
import { needs } from '../support/needs.js'
import { testSeed } from '../support/random.js'
import { Target } from '../support/target.js'
import { collect, newTracer } from '../support/tracing.js'
import { type Facts, passes } from './filter-model.js'
import { condition, EDGES, type Ingredients, written } from './filters.js'

const possible = needs({ programs: ['gcc'] })
const NAME = 'filtered-é'

/** What the target is told for one hit. */
interface Shot {
  readonly numbers: readonly bigint[]
  /** `null` for no string; then arg9 cannot be read either. */
  readonly text: string | null
}

/** Sizes of arg0 to arg7, in bits; every other one is signed. */
const BITS = [64, 64, 32, 32, 16, 16, 8, 8] as const

function factsOf({ numbers, text }: Shot, target: Target, sequence: number): Facts {
  const args = BITS.map((bits, index) => {
    const signed = index % 2 === 1
    const number = numbers[index] ?? 0n
    return { value: signed ? BigInt.asIntN(bits, number) : BigInt.asUintN(bits, number), signed }
  })
  const string = text === null ? null : Buffer.from(text)
  const pointer = { value: string === null ? 0n : 1n, signed: false }
  return {
    args: [
      ...[...args, { value: BigInt(sequence), signed: false }],
      ...[string === null ? null : { value: BigInt.asIntN(32, numbers[0] ?? 0n), signed: true }, pointer, pointer],
    ],
    strings: [...Array.from({ length: 10 }, () => null), string, string],
    comm: Buffer.from(NAME),
    pid: target.pid,
    tid: target.pid,
  }
}

/** Gives the target what it needs, and fires. */
async function shoot(target: Target, { numbers, text }: Shot): Promise<void> {
  assert.equal(await target.ask(`text ${text === null ? 'null' : Buffer.from(text).toString('hex')}`), 'set')
  assert.equal(await target.ask(`fire ${numbers.map((number) => BigInt.asUintN(64, number).toString(16)).join(' ')}`), 'fired')
}

async function startTarget(t: test.TestContext): Promise<Target> {
  const target = await Target.start(t, buildTarget(t, 'filtered'))
  assert.equal(await target.ask(`name ${Buffer.from(NAME).toString('hex')}`), 'named 0')
  return target
}

const number = fc.oneof(fc.constantFrom(...EDGES), fc.bigInt(-(1n << 63n), (1n << 63n) - 1n), fc.bigInt(-20n, 20n))
const anyShot = (text: fc.Arbitrary<string>): fc.Arbitrary<Shot> =>
  fc.record({ numbers: fc.array(number, { minLength: 8, maxLength: 8 }), text: fc.option(text, { freq: 4 }) })

/** All filters are attached at once, and see the same hits. */
const [FILTERS, TELLING, SHOTS] = [60, 50, 40]

/** Simple ones and others, of which most let some of the hits pass and some not; a few are as they come. */
function chooseFilters(ingredients: Ingredients, facts: readonly Facts[], seed: number): FilterCondition[] {
  return (['xsmall', 'small'] as const).flatMap((depthSize) => {
    const trees = fc.sample(condition({ ...ingredients, depthSize }), { seed, numRuns: 10 * FILTERS })
    const telling = trees.filter((tree) => facts.some((fact) => passes(tree, fact)) && facts.some((fact) => !passes(tree, fact)))
    assert.ok(telling.length >= TELLING / 2)
    return [...telling.slice(0, TELLING / 2), ...trees.slice(0, (FILTERS - TELLING) / 2)]
  })
}

/** Attaches random filters, fires random hits, and compares what each lets through with the model. */
async function compareWithModel(
  t: test.TestContext,
  ingredients: Ingredients,
  text: fc.Arbitrary<string>,
  options: AttachOptions,
): Promise<void> {
  const seed = testSeed()
  t.diagnostic(`UPROBE_TEST_SEED=${seed}`)
  const target = await startTarget(t)
  const shots = fc.sample(anyShot(text), { seed, numRuns: SHOTS })
  const facts = shots.map((shot, sequence) => factsOf(shot, target, sequence))
  const tracer = newTracer(t)
  const attached = await Promise.all(
    chooseFilters(ingredients, facts, seed).map(async (tree) => {
      const filter = written(tree)
      const probe = await tracer.attach('usdt:t:values', { pid: target.pid, filter, ...options })
      return { tree, filter, probe, hits: collect(probe) }
    }),
  )
  for (const shot of shots) await shoot(target, shot)
  await Promise.all(attached.map(({ probe }) => probe.detach()))
  for (const { tree, filter, probe, hits } of attached) {
    const expected = facts.flatMap((fact, sequence) => (passes(tree, fact) ? [sequence] : []))
    const passed = hits.map((hit) => Number(hit.args[8]))
    assert.deepEqual(passed, expected, `${filter}\n${firstDifference(tree, facts, passed)}`)
    const { hits: seen, filtered, delivered } = probe.stats()
    assert.deepEqual({ seen, filtered, delivered }, { seen: SHOTS, filtered: SHOTS - expected.length, delivered: expected.length })
  }
}

/** The arguments of the first hit that should have been let through and was not, or the other way round. */
function firstDifference(tree: FilterCondition, facts: readonly Facts[], passed: readonly number[]): string {
  const wrong = facts.find((fact, sequence) => passes(tree, fact) !== passed.includes(sequence))
  return JSON.stringify(wrong?.args.map((arg) => (arg === null ? null : String(arg.value))))
}

const noTexts = { numbers: 10, ids: ['pid', 'tid'], texts: undefined } as const

test('random filters on numbers let through what they should', possible, (t) =>
  compareWithModel(t, noTexts, fc.constant(''), { registration: 'perf' }),
)

/** Few different strings and texts, so that they often meet: of lengths around every step of the comparison, and some that differ late. */
const texts = fc.oneof(
  fc
    .tuple(fc.constantFrom(0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 126, 127, 128), fc.constantFrom('', 'y', 'é'))
    .map(([length, tail]) => 'x'.repeat(length) + tail),
  fc.constantFrom('x'.repeat(128), `${'x'.repeat(127)}y`, 'x'.repeat(129), 'x'.repeat(300)),
  fc.constantFrom(NAME, 'filtered-', 'filtered-e', 'f'),
)

const textCondition = fc
  .record({
    kind: fc.constant('text' as const),
    at: fc.constant(0),
    subject: fc.constantFrom(
      { kind: 'comm' as const, at: 0 },
      ...[10, 10, 11, 11].map((index) => ({ kind: 'str' as const, at: 0, index })),
    ),
    relation: fc.constantFrom('==' as const, '!=' as const),
    text: texts,
    prefix: fc.boolean(),
  })
  .filter(({ text, prefix, subject }) => !(prefix && text === '') && Buffer.byteLength(text) <= (subject.kind === 'comm' ? 15 : 128))

test('random filters on strings let through what they should', possible, (t) =>
  compareWithModel(t, { ...noTexts, texts: textCondition, comparisons: false }, texts, { registration: HAS_MULTI ? 'multi' : 'perf' }),
)

/** Whether a filter lets hits through that have these strings, in this order. */
const AT_THE_EDGE: ReadonlyArray<readonly [filter: string, passes: readonly boolean[]]> = [
  // Strings:                             ''     'x'    'xy'   null
  ['str(arg10) == ""', /*             */ [true, false, false, false]],
  ['str(arg10) != ""', /*             */ [false, true, true, false]],
  ['!(str(arg10) == "")', /*          */ [false, true, true, true]],
  ['str(arg10) == "" || arg0 == 9', /**/ [true, false, false, false]],
  ['str(arg10) == "x"', /*            */ [false, true, false, false]],
  ['str(arg10) != "x"', /*            */ [true, false, true, false]],
  ['strncmp(str(arg10), "x", 1) == 0', [false, true, true, false]],
  ['strncmp(str(arg10), "x", 1) != 0', [true, false, false, false]],
]

// Kernels differ in what they say of an empty string, so this is not left to chance.
test('filters on strings know an empty one, a single character and none at all', possible, async (t) => {
  const target = await startTarget(t)
  const tracer = newTracer(t)
  const attached = await Promise.all(
    AT_THE_EDGE.map(async ([filter, passes]) => {
      const probe = await tracer.attach('usdt:t:values', { pid: target.pid, filter })
      return { filter, passes, probe, hits: collect(probe) }
    }),
  )
  for (const text of ['', 'x', 'xy', null]) await shoot(target, { numbers: Array.from({ length: 8 }, () => 1n), text })
  await Promise.all(attached.map(({ probe }) => probe.detach()))
  for (const { filter, passes, hits } of attached) {
    const passed = hits.map((hit) => Number(hit.args[8]))
    assert.deepEqual(
      passed,
      [0, 1, 2, 3].filter((shot) => passes[shot]),
      filter,
    )
  }
})
