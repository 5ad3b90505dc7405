/**
 * Runs tests in virtual machines with other kernels, under qemu's software emulation: what this machine's kernel cannot show, and what could crash it.
 *
 *     npm run test:guest                      every kernel below
 *     npm run test:guest -- 5.10 arm64-6.12   only these
 *     npm run test:guest -- 7.2 --tests=usdt  only test files whose name contains a word
 *
 * A run needs qemu-system-x86 and qemu-system-arm, gcc, and for arm64 g++-aarch64-linux-gnu. Kernels come from Debian's archive and are kept in
 * UPROBE_GUEST_CACHE (default: a folder in the system's temporary directory).
 */
import { execFileSync, spawn } from 'node:child_process'
import { existsSync, mkdirSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { makeImage } from './image.mjs'
import { Packages } from './packages.mjs'

const root = dirname(dirname(dirname(fileURLToPath(import.meta.url))))
const cache = process.env.UPROBE_GUEST_CACHE ?? join(tmpdir(), 'uprobe-guests')

/** Kernel series by the name of the guest, and what they lack (test/support/features.ts). The newest there is of each series is taken. */
const GUESTS = {
  '5.10': { architecture: 'amd64', lacks: 'multi,sleepable', kernel: /^linux-image-5\.10\.\d.*-cloud-amd64$/ },
  6.1: { architecture: 'amd64', lacks: 'multi,sleepable', kernel: /^linux-image-6\.1\.\d.*-cloud-amd64$/ },
  6.12: { architecture: 'amd64', kernel: /^linux-image-6\.12\.\d.*-cloud-amd64$/ },
  newest: { architecture: 'amd64', kernel: /^linux-image-([7-9]|\d\d)\.\d+\.\d.*-cloud-amd64$/ },
  'arm64-6.12': { architecture: 'arm64', kernel: /^linux-image-6\.12\.\d.*-cloud-arm64$/ },
}

/** Tests that need no more than a guest has: no compiler, no Debian packages, no other tracer. */
const TESTS = [
  'test/native/perf_event.test.js',
  'test/native/bpf.test.js',
  'test/native/ring_reader.test.js',
  'test/capture/verifier.test.js',
  'test/capture/values.test.js',
  'test/capture/absent.test.js',
  'test/integration/usdt.test.js',
  'test/integration/processes.test.js',
  'test/integration/accounting.test.js',
  'test/integration/lifecycle.test.js',
  'test/native/killed.test.js',
]

const MACHINES = {
  amd64: ['qemu-system-x86_64', '-cpu', 'max', '-append', 'console=ttyS0 panic=-1 quiet'],
  arm64: ['qemu-system-aarch64', '-M', 'virt', '-cpu', 'max,pauth-impdef=on', '-append', 'console=ttyAMA0 panic=-1 quiet'],
}
const BOOT_LIMIT_MS = 15 * 60_000

function compile() {
  const output = join(cache, 'compiled')
  rmSync(output, { recursive: true, force: true })
  execFileSync(
    process.execPath,
    [join(root, 'node_modules/typescript/bin/tsc'), '-p', join(root, 'tsconfig.guest.json'), '--outDir', output],
    { stdio: 'inherit' },
  )
  return output
}

function kernelOf(packages, pattern) {
  const names = packages.names(pattern)
  const name = names.at(-1)
  if (name === undefined) throw new Error(`no kernel matches ${pattern}`)
  const files = packages.unpack(name)
  for (const folder of ['boot', ...safeList(join(files, 'usr/lib/modules')).map((version) => `usr/lib/modules/${version}`)]) {
    const image = safeList(join(files, folder)).find((file) => file.startsWith('vmlinuz'))
    if (image !== undefined) return join(files, folder, image)
  }
  // Newer packages put the image into a package of its own.
  return kernelOf(packages, new RegExp(`^${name.replace('linux-image', 'linux-binary').replaceAll('+', '\\+').replaceAll('.', '\\.')}$`))
}

function safeList(directory) {
  return existsSync(directory) ? readdirSync(directory) : []
}

/** Boots a guest and shows what it prints; resolves to whether its tests passed. */
function boot(architecture, kernel, image) {
  const [program, ...options] = MACHINES[architecture]
  const args = [
    ...options,
    '-accel',
    'tcg,thread=multi',
    '-m',
    '1536',
    '-smp',
    '2',
    '-nographic',
    '-no-reboot',
    '-nodefaults',
    '-serial',
    'stdio',
    '-kernel',
    kernel,
    '-initrd',
    image,
  ]
  return new Promise((resolve, reject) => {
    const child = spawn(program, args, { stdio: ['ignore', 'pipe', 'inherit'] })
    const limit = setTimeout(() => child.kill('SIGKILL'), BOOT_LIMIT_MS)
    let text = ''
    child.stdout.setEncoding('utf8').on('data', (piece) => {
      text += piece
      process.stdout.write(piece)
    })
    child.on('error', reject)
    child.on('close', () => {
      clearTimeout(limit)
      resolve(/^guest: status 0\r?$/m.test(text))
    })
  })
}

const words = process.argv.slice(2).filter((word) => !word.startsWith('--'))
const filter = process.argv.find((word) => word.startsWith('--tests='))?.slice('--tests='.length)
const wanted = Object.keys(GUESTS).filter((name) => words.length === 0 || words.includes(name))
const tests = TESTS.filter((name) => filter === undefined || name.includes(filter))
if (wanted.length === 0 || tests.length === 0) {
  console.error(`no such guest or test; there are ${Object.keys(GUESTS).join(', ')}`)
  process.exit(2)
}
mkdirSync(cache, { recursive: true })
// Always anew: an addon older than its sources would be tested otherwise.
execFileSync(process.execPath, [join(root, 'scripts/prebuilds.mjs')], { stdio: 'inherit' })
const compiled = compile()
const results = []
for (const name of wanted) {
  const { architecture, kernel: pattern, lacks = '' } = GUESTS[name]
  const packages = new Packages(cache, architecture)
  packages.update()
  const kernel = kernelOf(packages, pattern)
  const image = join(cache, `image-${architecture}.cpio`)
  writeFileSync(image, makeImage({ root, cache, packages, architecture, tests, compiled, lacks }))
  console.log(`\n== guest ${name}`)
  results.push([name, await boot(architecture, kernel, image)])
}
console.log('')
for (const [name, passed] of results) console.log(`guest ${name}: ${passed ? 'passed' : 'failed'}`)
const failed = results.filter(([, passed]) => !passed).length
console.log(`${results.length - failed} passed, ${failed} failed`)
process.exit(failed === 0 ? 0 : 1)
