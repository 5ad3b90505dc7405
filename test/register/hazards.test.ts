/**
 * Which sites are refused, on which kernels, and what can be overridden.
 */
import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { checkSite, type HazardContext, nop5IsDangerous, returnProbeBreaksSeccomp } from '../../lib/register/hazards.js'
import type { CodeSite, InstructionSource } from '../../lib/register/instruction-start.js'

const ENXIO = 6
const ENOSYS = 38
const EPERM = 1
const EPROTO = 71

const NOP5 = '0f1f440000'
const SITE: CodeSite = { probe: 'usdt:shop:sale', origin: 'note', vaddr: 0x401000n, fileOffset: 0x1000n }

/** Code of which the site is the first instruction; `ret` follows. */
function source(instruction = '90', arch: InstructionSource['arch'] = 'x64'): InstructionSource {
  const code = Buffer.from(`${instruction}c3`, 'hex')
  return {
    arch,
    path: '/bin/shop',
    readCode: async (vaddr, atMost) => code.subarray(Number(vaddr - SITE.vaddr), Number(vaddr - SITE.vaddr) + atMost),
    functionContaining: async () => ({ name: 'sale', vaddr: SITE.vaddr }),
  }
}

/** A context in which nothing is wrong. */
function context(more: Partial<HazardContext> = {}): HazardContext {
  return {
    source: source(),
    goBinary: false,
    retprobe: false,
    unsafe: false,
    kernelRelease: '6.1.0-44-amd64',
    uprobeSyscallErrno: ENOSYS,
    targets: [{ pid: 77, seccompMode: 0 }],
    ...more,
  }
}

async function codeOf(more: Partial<HazardContext>, site = SITE): Promise<string | null> {
  return (await checkSite(site, context(more)))?.code ?? null
}

const harmful = { uprobeSyscallErrno: ENXIO, kernelRelease: '6.18.2' }

describe('checkSite on nops of five bytes', () => {
  for (const nop of [NOP5, '6666666690', '2e2e2e2e90', '3e0f1f4000', '488d642400', 'e900000000']) {
    it(`refuses ${nop} where the kernel replaces it`, async () => {
      assert.equal(await codeOf({ ...harmful, source: source(nop) }), 'ERR_UPROBE_UNSAFE_NOP5')
    })
  }

  it('refuses it at notes, symbols, offsets and for return probes alike', async () => {
    const nop5 = { ...harmful, source: source(NOP5) }
    for (const origin of ['note', 'symbol', 'inside'] as const)
      assert.equal(await codeOf(nop5, { ...SITE, origin }), 'ERR_UPROBE_UNSAFE_NOP5')
    assert.equal(await codeOf({ ...nop5, retprobe: true }), 'ERR_UPROBE_UNSAFE_NOP5')
    assert.equal(await codeOf({ ...nop5, targets: null }), 'ERR_UPROBE_UNSAFE_NOP5')
  })

  it('refuses it also when the user takes risks', async () => {
    assert.equal(await codeOf({ ...harmful, source: source(NOP5), unsafe: true }), 'ERR_UPROBE_UNSAFE_NOP5')
  })

  it('accepts other lengths, and other instructions of five bytes', async () => {
    for (const other of ['90', '6690', '0f1f00', '0f1f4000', '660f1f440000', 'e900000001', 'b811223344', 'e811223344']) {
      assert.equal(await codeOf({ ...harmful, source: source(other) }), null)
    }
  })

  it('accepts it on kernels without the replacement, on repaired ones and on arm64', async () => {
    assert.equal(await codeOf({ source: source(NOP5), uprobeSyscallErrno: ENOSYS, kernelRelease: '6.12.90' }), null)
    assert.equal(await codeOf({ source: source(NOP5), uprobeSyscallErrno: EPROTO, kernelRelease: '7.2.1' }), null)
    assert.equal(await codeOf({ source: source(NOP5, 'arm64'), uprobeSyscallErrno: 0, kernelRelease: '6.18.2' }), null)
  })

  it('says what to probe instead', async () => {
    const error = await checkSite(SITE, context({ ...harmful, source: source(NOP5) }))
    assert.match(error?.message ?? '', /^usdt:shop:sale at \/bin\/shop:0x1000: .*\(0f1f440000\).*6\.18\.2.*offset 0x1005/)
  })
})

describe('nop5IsDangerous', () => {
  it('believes the answer of the system call whatever the version', () => {
    assert.equal(nop5IsDangerous(ENXIO, '6.12.0'), true)
    assert.equal(nop5IsDangerous(EPROTO, '6.18.40'), false)
  })

  it('goes by the version when a seccomp filter hides the answer', () => {
    assert.equal(nop5IsDangerous(ENOSYS, '6.17.9'), false)
    assert.equal(nop5IsDangerous(ENOSYS, '6.18.0-rc1'), true)
    assert.equal(nop5IsDangerous(EPERM, '7.0.3'), true)
    assert.equal(nop5IsDangerous(EPERM, 'unreadable'), true)
  })
})

describe('checkSite on addresses', () => {
  const middle: CodeSite = { ...SITE, origin: 'inside', vaddr: SITE.vaddr + 1n, fileOffset: SITE.fileOffset + 1n }

  it('refuses the middle of an instruction', async () => {
    assert.equal(await codeOf({ source: source('b811223344') }, middle), 'ERR_UPROBE_NOT_INSTRUCTION')
  })

  it('accepts it when the user takes the risk', async () => {
    assert.equal(await codeOf({ source: source('b811223344'), unsafe: true }, middle), null)
  })
})

describe('checkSite on return probes in Go programs', () => {
  it('refuses them, and accepts entry probes', async () => {
    assert.equal(await codeOf({ goBinary: true, retprobe: true }), 'ERR_UPROBE_UNSAFE_GO')
    assert.equal(await codeOf({ goBinary: true }), null)
  })

  it('accepts them when the user takes the risk', async () => {
    assert.equal(await codeOf({ goBinary: true, retprobe: true, unsafe: true }), null)
  })
})

describe('checkSite on return probes beside seccomp', () => {
  const affected = {
    retprobe: true,
    kernelRelease: '6.12.5-amd64',
    targets: [
      { pid: 76, seccompMode: 0 },
      { pid: 77, seccompMode: 2 },
    ],
  }

  it('refuses them and names the process', async () => {
    const error = await checkSite(SITE, context(affected))
    assert.equal(error?.code, 'ERR_UPROBE_UNSAFE_SECCOMP')
    assert.equal(error.pid, 77)
    assert.match(error.message, /6\.12\.5-amd64.*process 77.*unsafe: true/)
  })

  it('refuses them for every process, since one of them may use seccomp', async () => {
    assert.equal(await codeOf({ ...affected, targets: null }), 'ERR_UPROBE_UNSAFE_SECCOMP')
  })

  it('accepts them without seccomp, on other kernels, on arm64, at the entry, and when the user takes the risk', async () => {
    assert.equal(await codeOf({ ...affected, targets: [{ pid: 76, seccompMode: 0 }] }), null)
    assert.equal(await codeOf({ ...affected, kernelRelease: '6.1.0-44-amd64' }), null)
    assert.equal(await codeOf({ ...affected, source: source('90', 'arm64') }), null)
    assert.equal(await codeOf({ ...affected, retprobe: false }), null)
    assert.equal(await codeOf({ ...affected, unsafe: true }), null)
  })

  const releases: ReadonlyArray<[release: string, breaks: boolean]> = [
    ['6.10.14', false],
    ['6.11.0', true],
    ['6.11', true],
    ['6.11.0-29-generic', true],
    ['6.12.13', true],
    ['6.12.14', false],
    ['6.12.14+deb13-amd64', false],
    ['6.13.0-rc3', true],
    ['6.13.2', true],
    ['6.13.3', false],
    ['6.14.0', false],
    ['5.11.0', false],
    ['7.12.1', false],
    ['unreadable', false],
  ]
  for (const [release, breaks] of releases) {
    it(`knows that ${release} is ${breaks ? '' : 'not '}affected`, () => assert.equal(returnProbeBreaksSeccomp(release), breaks))
  }
})
