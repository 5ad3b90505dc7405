/**
 * `uprobe list`: every site of a file or a process, in JSON and in columns.
 */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import test, { type TestContext } from 'node:test'
import { alignColumns } from '../../lib/cli/text.js'
import { escapeForDisplay } from '../../lib/log.js'
import { buildTarget } from '../support/build.js'
import { assertSafeForTerminal, failed, jsonOf, linesOf, succeeded, uprobe } from '../support/cli.js'
import { LAYOUT, type NotePlan, usdtFile } from '../support/elf-builder.js'
import { needs } from '../support/needs.js'
import { Target } from '../support/target.js'
import { tempDirectory } from '../support/temp.js'

const GCC = needs({ programs: ['gcc'] })
const FORMAT = { bits: 64, littleEndian: true } as const
const IMAGE = 0x400000
const TEXT = IMAGE + LAYOUT.text.address
const BASE = IMAGE + LAYOUT.base.address
const PROBES = IMAGE + LAYOUT.probes.address

/** Each kind of site: with a counter, without, with one in .bss, outside of the file, and moved by prelink. */
const NOTES: readonly NotePlan[] = [
  { provider: 'p', name: 'counted', args: '-4@%edi 8@-20(%rbp)', pc: TEXT + 0x10, base: BASE, semaphore: PROBES + 4 },
  { provider: 'p', name: 'plain', args: '', pc: TEXT + 0x20, base: BASE, semaphore: 0 },
  { provider: 'p', name: 'bss', args: '8@%rax', pc: TEXT + 0x30, base: BASE, semaphore: IMAGE + LAYOUT.bss.address },
  { provider: 'q', name: 'outside', args: '', pc: 0x900000, base: BASE, semaphore: 0 },
  { provider: 'q', name: 'moved', args: '4@$1', pc: TEXT + 0x40 - 0x100000, base: BASE - 0x100000, semaphore: PROBES + 6 - 0x100000 },
]

function fileWith(t: TestContext, notes: readonly NotePlan[], name = 'program'): string {
  const path = join(tempDirectory(t), name)
  writeFileSync(path, usdtFile(FORMAT, IMAGE, [notes]).bytes)
  return path
}

const hex = (value: number): string => `0x${value.toString(16)}`

test('prints a JSON object a site: stored addresses as stored, offsets after all adjustments, null where there is none', async (t) => {
  const path = fileWith(t, NOTES)
  const common = { path, base: hex(BASE) }
  assert.deepEqual(jsonOf(succeeded(await uprobe(t, 'list', '--json', path))), [
    {
      ...{ ...common, provider: 'p', name: 'counted', pc: hex(TEXT + 0x10), semaphore: hex(PROBES + 4), args: '-4@%edi 8@-20(%rbp)' },
      ...{ fileOffset: '0x1010', refCtrOffset: '0x2004' },
    },
    { ...common, provider: 'p', name: 'plain', pc: hex(TEXT + 0x20), semaphore: '0x0', args: '', fileOffset: '0x1020', refCtrOffset: null },
    {
      ...{ ...common, provider: 'p', name: 'bss', pc: hex(TEXT + 0x30), semaphore: hex(IMAGE + LAYOUT.bss.address), args: '8@%rax' },
      ...{ fileOffset: '0x1030', refCtrOffset: null },
    },
    { ...common, provider: 'q', name: 'outside', pc: '0x900000', semaphore: '0x0', args: '', fileOffset: null, refCtrOffset: null },
    {
      ...{ path, base: hex(BASE - 0x100000), provider: 'q', name: 'moved', pc: hex(TEXT + 0x40 - 0x100000) },
      ...{ semaphore: hex(PROBES + 6 - 0x100000), args: '4@$1', fileOffset: '0x1040', refCtrOffset: '0x2006' },
    },
  ])
})

test('prints aligned columns for people: the probe as trace takes it, its offset, its counter, its arguments', async (t) => {
  const path = fileWith(t, NOTES)
  assert.deepEqual(linesOf(succeeded(await uprobe(t, 'list', path))), [
    `usdt:${path}:p:counted  0x1010      counter 0x2004       -4@%edi 8@-20(%rbp)`,
    `usdt:${path}:p:plain    0x1020      no counter`,
    `usdt:${path}:p:bss      0x1030      counter unreachable  8@%rax`,
    `usdt:${path}:q:outside  not mapped  no counter`,
    `usdt:${path}:q:moved    0x1040      counter 0x2006       4@$1`,
  ])
})

test('aligns columns of any widths, and counts what is escaped as it is shown', async (t) => {
  const plans = Array.from({ length: 60 }, (_, index): NotePlan => {
    const semaphore = [0, PROBES + 2 * (index % 8), IMAGE + LAYOUT.bss.address][index % 3] ?? 0
    return {
      provider: `${index % 4 === 3 ? '\x1b' : 'p'}${'q'.repeat((index * 7) % 11)}`,
      name: `${index % 5 === 4 ? 'n\n' : 'n'}${'m'.repeat((index * 5) % 13)}`,
      args: index % 2 === 0 ? '8@%rax' : '',
      pc: index % 6 === 5 ? 0x900000 : TEXT + index,
      base: BASE,
      semaphore,
    }
  })
  for (const notes of [plans, plans.filter(({ name }) => !String(name).includes('\n')), plans.filter(({ pc }) => pc !== 0x900000)]) {
    const path = fileWith(t, notes)
    const sites = jsonOf(succeeded(await uprobe(t, 'list', path, '--json'))) as Array<Record<string, string | null>>
    assert.equal(sites.length, notes.length)
    const rows = sites.map(({ provider, name, args, semaphore, fileOffset, refCtrOffset }) => [
      escapeForDisplay(`usdt:${path}:${provider}:${name}`),
      fileOffset ?? 'not mapped',
      refCtrOffset !== null ? `counter ${refCtrOffset}` : semaphore === '0x0' ? 'no counter' : 'counter unreachable',
      args ?? '',
    ])
    assert.deepEqual(linesOf(succeeded(await uprobe(t, 'list', path))), alignColumns(rows))
  }
})

test('takes its arguments in any order and behind --, and refuses more of them, or an option that it has not', async (t) => {
  const path = fileWith(t, NOTES)
  const all = succeeded(await uprobe(t, 'list', '--json', path, 'p:*'))
  assert.equal(linesOf(all).length, 3)
  for (const args of [
    ['list', path, '--json', 'p:*'],
    ['list', path, 'p:*', '--json'],
    ['list', '--json', '--', path, 'p:*'],
  ]) {
    assert.equal(succeeded(await uprobe(t, ...args)), all)
  }
  failed(await uprobe(t, 'list', path, 'p:*', 'q:*'), 2, 'ERR_UPROBE_BAD_OPTION')
  failed(await uprobe(t, 'list', path, '--jso'), 2, 'ERR_UPROBE_BAD_OPTION')
  failed(await uprobe(t, 'list', '-p', path), 2, 'ERR_UPROBE_BAD_OPTION')
  failed(await uprobe(t, 'list'), 2, 'ERR_UPROBE_BAD_OPTION')
  failed(await uprobe(t, 'list', '99999999'), 2, 'ERR_UPROBE_BAD_OPTION')
  failed(await uprobe(t, 'list', path, 'p'), 2, 'ERR_UPROBE_BAD_SPEC')
})

test('PATTERN chooses by provider and name; nothing found is success without a word, in both forms', async (t) => {
  const path = fileWith(t, NOTES)
  const names = async (pattern: string): Promise<string[]> =>
    (jsonOf(succeeded(await uprobe(t, 'list', path, pattern, '--json'))) as Array<{ name: string }>).map(({ name }) => name)
  assert.deepEqual(await names('p:*'), ['counted', 'plain', 'bss'])
  assert.deepEqual(await names('?:?o*d'), ['counted', 'moved'])
  assert.deepEqual(await names('r:*'), [])
  assert.equal(succeeded(await uprobe(t, 'list', path, 'r:*')), '')
  assert.equal(succeeded(await uprobe(t, 'list', fileWith(t, []), '--json')), '')
})

test('what is no ELF file, no file, or broken is explained and has exit code 1', async (t) => {
  const path = fileWith(t, NOTES)
  writeFileSync(path, 'no program')
  assert.match(failed(await uprobe(t, 'list', path), 1, 'ERR_UPROBE_BAD_ELF'), /not an ELF file/)
  writeFileSync(path, usdtFile(FORMAT, IMAGE, [NOTES]).bytes.subarray(0, 0x900))
  failed(await uprobe(t, 'list', path), 1, 'ERR_UPROBE_BAD_ELF')
  // It would wait for ever for somebody who writes into it.
  const pipe = `${path}.pipe`
  execFileSync('mkfifo', [pipe])
  assert.match(failed(await uprobe(t, 'list', pipe), 1, 'ERR_UPROBE_FILE'), /not a regular file/)
})

test('what a hostile file calls itself and its probes reaches neither the terminal raw nor breaks a line', async (t) => {
  const hostile = '\x1b[2J\n{"provider":"x"}\u009b\u202e\u2028"\\'
  const path = fileWith(
    t,
    [{ provider: hostile, name: Buffer.from('n\x9b\xff', 'latin1'), args: hostile, pc: TEXT, base: BASE, semaphore: 0 }],
    `a${hostile.replace('/', '')}`,
  )
  const json = succeeded(await uprobe(t, 'list', '--json', path))
  assertSafeForTerminal(json)
  assert.equal(linesOf(json).length, 1)
  const [site] = jsonOf(json) as Array<{ provider: string; path: string; args: string }>
  assert.deepEqual([site?.provider, site?.args, site?.path], [hostile, hostile, path])
  const text = succeeded(await uprobe(t, 'list', path))
  assertSafeForTerminal(text)
  assert.equal(linesOf(text).length, 1)
  assert.ok(text.includes(String.raw`\x1b[2J\x0a{"provider":"x"}\x9b\u{202e}\u{2028}"\\`), text)
})

test('a process id lists all files that the process maps with code', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  const library = buildTarget(t, 'lib', 'shared')
  await target.ask(`dlopen ${library}`)
  const sites = jsonOf(succeeded(await uprobe(t, 'list', String(target.pid), 't:*', '--json'))) as Array<{ path: string; name: string }>
  const names = (path: string): string[] =>
    sites
      .filter((site) => site.path === path)
      .map(({ name }) => name)
      .sort()
  assert.deepEqual(names(target.program), ['gated', 'plain', 'shared', 'shared', 'shared', 'twin', 'ungated'])
  assert.deepEqual(names(library), ['own', 'twin'])
  assert.equal(sites.length, 9)
})

test('a file whose name is a number is listed by its path', async (t) => {
  const path = fileWith(t, NOTES, '1')
  assert.equal(linesOf(succeeded(await uprobe(t, 'list', path))).length, NOTES.length)
})
