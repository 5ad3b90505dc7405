/**
 * Which addresses count as starts of instructions, on code that is written out here and on libc.
 */
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { describe, it } from 'node:test'
import { ElfFile } from '../../lib/elf/elf-file.js'
import { findFunctions } from '../../lib/elf/symbols.js'
import type { UprobeError } from '../../lib/errors.js'
import { elfInstructions } from '../../lib/register/elf-instructions.js'
import { type CodeSite, checkInstructionStart, type InstructionSource } from '../../lib/register/instruction-start.js'

const CODE_VADDR = 0x401000n
const FILE_OFFSET = 0x1000n

/** Code at 0x401000, which begins with the function `work`. */
function sourceOf(code: Buffer, more: Partial<InstructionSource> = {}): InstructionSource {
  return {
    arch: 'x64',
    path: '/bin/work',
    readCode: async (vaddr, atMost) => code.subarray(Number(vaddr - CODE_VADDR), Number(vaddr - CODE_VADDR) + atMost),
    functionContaining: async () => ({ name: 'work', vaddr: CODE_VADDR }),
    ...more,
  }
}

function siteAt(offset: number, origin: CodeSite['origin'] = 'inside'): CodeSite {
  const at = BigInt(offset)
  return { probe: `uprobe:work+0x${offset.toString(16)}`, origin, vaddr: CODE_VADDR + at, fileOffset: FILE_OFFSET + at }
}

// push %rbp; mov %rsp,%rbp; mov $0x11223344,%eax; pop %rbp; ret
const CODE = Buffer.from('55' + '4889e5' + 'b844332211' + '5d' + 'c3', 'hex')
const STARTS = [0, 1, 4, 9, 10]

describe('checkInstructionStart', () => {
  it('accepts the starts of instructions, and no other address of the function', async () => {
    const accepted: number[] = []
    for (let offset = 0; offset < CODE.length; offset++) {
      if ((await checkInstructionStart(sourceOf(CODE), siteAt(offset))) === null) accepted.push(offset)
    }
    assert.deepEqual(accepted, STARTS)
  })

  it('names the nearest starts before and behind, as symbol and as offset', async () => {
    const error = await checkInstructionStart(sourceOf(CODE), siteAt(6))
    assert.equal(error?.code, 'ERR_UPROBE_NOT_INSTRUCTION')
    assert.equal(error.site, 'uprobe:work+0x6 at /bin/work:0x1006')
    assert.match(error.message, /start at work\+0x4 \(offset 0x1004\) and work\+0x9 \(offset 0x1009\)\. .*unsafe: true/)
  })

  it('takes the word of a note and of a symbol without reading any code', async () => {
    const source = sourceOf(CODE, { readCode: () => assert.fail('code was read') })
    assert.equal(await checkInstructionStart(source, siteAt(6, 'note')), null)
    assert.equal(await checkInstructionStart(source, siteAt(6, 'symbol')), null)
  })

  it('refuses an address that belongs to no function, and says how to override', async () => {
    const error = await checkInstructionStart(sourceOf(CODE, { functionContaining: async () => null }), siteAt(4))
    assert.equal(error?.code, 'ERR_UPROBE_NOT_INSTRUCTION')
    assert.match(error.message, /no symbol .* unsafe: true/)
  })

  it('refuses an address behind bytes that are no instruction, and names them', async () => {
    const error = await checkInstructionStart(sourceOf(Buffer.from('5506c3c3', 'hex')), siteAt(3))
    assert.match(error?.message ?? '', /cannot be decoded from work\+0x1 \(offset 0x1001\) on/)
  })

  it('refuses an address behind the end of the code', async () => {
    const error = await checkInstructionStart(sourceOf(CODE), siteAt(64))
    assert.match(error?.message ?? '', /cannot be decoded from work\+0xb/)
  })

  it('decodes across the pieces in which it reads', async () => {
    // 7-byte instructions do not end where a piece ends.
    const mov = Buffer.from('48c7c011223344', 'hex')
    const code = Buffer.concat(Array.from({ length: 20_000 }, () => mov))
    const source = sourceOf(code)
    for (const index of [4680, 4681, 4682, 9362, 19_999]) {
      assert.equal(await checkInstructionStart(source, siteAt(index * 7)), null)
      assert.equal((await checkInstructionStart(source, siteAt(index * 7 + 3)))?.code, 'ERR_UPROBE_NOT_INSTRUCTION')
    }
  })

  it('gives up on a function of absurd size without reading it', async () => {
    const source = sourceOf(CODE, { readCode: () => assert.fail('code was read') })
    const far: CodeSite = { ...siteAt(0), vaddr: CODE_VADDR + 2n ** 40n }
    assert.equal((await checkInstructionStart(source, far))?.code, 'ERR_UPROBE_NOT_INSTRUCTION')
  })

  it('escapes names that come from the file', async () => {
    const source = sourceOf(CODE, {
      path: '/bin/\u001b[2J',
      functionContaining: async () => ({ name: 'evil\u001b[31m', vaddr: CODE_VADDR }),
    })
    const error = await checkInstructionStart(source, { ...siteAt(6), probe: 'uprobe:evil\u001b[31m+0x6' })
    assert.ok(error !== null && !`${error.message}${error.site}${error.path}`.includes('\u001b'))
  })

  it('asks on arm64 only for alignment', async () => {
    const source = sourceOf(CODE, { arch: 'arm64', functionContaining: async () => null, readCode: () => assert.fail('code was read') })
    assert.equal(await checkInstructionStart(source, siteAt(8)), null)
    const error = await checkInstructionStart(source, siteAt(6, 'note'))
    assert.equal(error?.code, 'ERR_UPROBE_NOT_INSTRUCTION')
    assert.match(error.message, /offsets 0x1004 and 0x1008/)
  })
})

describe('checkInstructionStart on libc', { skip: process.arch === 'x64' ? false : 'libc of this machine is not x86-64 code' }, () => {
  it('accepts exactly the addresses of malloc that objdump lists', async (t) => {
    const path = /\/\S*libc\.so\.6$/m.exec(readFileSync('/proc/self/maps', 'utf8'))?.[0]
    assert.ok(path, 'this process maps no libc.so.6')
    const elf = await ElfFile.open(path)
    t.after(() => elf.close())
    const source = elfInstructions(elf, 'x64')
    const [malloc] = await findFunctions(elf, 'malloc')
    assert.ok(malloc !== undefined && malloc.size > 0n)
    const fileOffset = elf.fileOffsetOf(malloc.vaddr)
    assert.ok(fileOffset !== null)
    const range = [`--start-address=${malloc.vaddr}`, `--stop-address=${malloc.vaddr + malloc.size}`]
    const objdump = spawnSync('objdump', ['-d', '-w', ...range, path], { encoding: 'latin1' })
    if (objdump.error !== undefined && process.env.CI !== 'true') return t.skip('objdump of binutils is not installed')
    const listed = [...objdump.stdout.matchAll(/^ *([0-9a-f]+):\t/gm)].map(([, address]) => BigInt(`0x${address}`))
    assert.ok(listed.length > 20)
    const accepted: bigint[] = []
    const refused: UprobeError[] = []
    for (let at = 0n; at < malloc.size; at++) {
      const site: CodeSite = { probe: `uprobe:malloc+${at}`, origin: 'inside', vaddr: malloc.vaddr + at, fileOffset: fileOffset + at }
      const error = await checkInstructionStart(source, site)
      if (error === null) accepted.push(site.vaddr)
      else refused.push(error)
    }
    assert.deepEqual(accepted, listed)
    assert.ok(refused.every(({ code, message }) => code === 'ERR_UPROBE_NOT_INSTRUCTION' && message.includes('lies inside an instruction')))
  })
})
