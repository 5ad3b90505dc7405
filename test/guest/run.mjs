/**
 * Runs tests in virtual machines with other kernels: what this machine's kernel cannot show, and what could crash it.
 *
 *     npm run test:guest                           every guest of guests.mjs
 *     npm run test:guest -- 5.10 arm64-6.12        only these
 *     npm run test:guest -- newest --tests=usdt    only test files whose name contains a word
 *     npm run test:guest -- --jobs=1               one guest at a time; default: two
 *
 * It takes Debian's qemu-system-x86, qemu-system-arm, gcc, binutils, and g++-aarch64-linux-gnu. Kernels come from Debian's archive and are kept in UPROBE_GUEST_CACHE (default: a
 * folder in the system's temporary directory). Variables of the environment that begin with UPROBE_TEST_ reach the tests.
 */
import { execFileSync } from 'node:child_process'
import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { availableParallelism, tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { GUESTS, guestTests } from './guests.mjs'
import { makeImage } from './image.mjs'
import { boot } from './machine.mjs'
import { kernelOf, Packages } from './packages.mjs'

const LIMIT_MS = 50 * 60_000
/** Where programs and libraries of guests come from. */
const PROGRAMS_SUITE = 'trixie'

const root = dirname(dirname(dirname(fileURLToPath(import.meta.url))))
const cache = process.env.UPROBE_GUEST_CACHE ?? join(tmpdir(), 'uprobe-guests')

function option(name) {
  return process.argv.find((word) => word.startsWith(`--${name}=`))?.slice(name.length + 3)
}

/** When a file changed, or the newest one in a folder. */
function changed(path) {
  const stat = statSync(path)
  return stat.isDirectory() ? Math.max(stat.mtimeMs, ...readdirSync(path).map((name) => changed(join(path, name)))) : stat.mtimeMs
}

/** Builds the addon for the guests, where it is older than its sources. */
function buildAddons() {
  const sources = Math.max(changed(join(root, 'native')), changed(join(root, 'binding.gyp')))
  const stale = ['x64', 'arm64'].filter((name) => {
    const folder = join(root, 'prebuilds', `linux-${name}`)
    return !existsSync(folder) || changed(folder) < sources
  })
  if (stale.length > 0) execFileSync(process.execPath, [join(root, 'scripts/prebuilds.mjs'), ...stale], { stdio: 'inherit' })
}

function compile(output) {
  const tsc = join(root, 'node_modules/typescript/bin/tsc')
  execFileSync(process.execPath, [tsc, '-p', join(root, 'tsconfig.guest.json'), '--outDir', output], { stdio: 'inherit' })
}

/** Says what a step took, since a run is long. */
function timed(what, step) {
  const begin = performance.now()
  const value = step()
  console.log(`guests: ${what}: ${((performance.now() - begin) / 1000).toFixed(0)} s`)
  return value
}

/** Makes the image of each architecture and finds each guest's kernel. */
function prepare(names, tests, work) {
  timed('addon', buildAddons)
  const compiled = join(work, 'compiled')
  timed('JavaScript', () => compile(compiled))
  const archives = new Map()
  const packagesOf = (architecture, suite) => {
    const key = `${architecture} ${suite}`
    if (!archives.has(key)) archives.set(key, new Packages(cache, architecture, suite))
    return archives.get(key)
  }
  const kernels = new Map(
    names.map((name) => {
      const { architecture, suites, kernel } = GUESTS[name]
      return [
        name,
        timed(`kernel of ${name}`, () =>
          kernelOf(
            suites.map((suite) => packagesOf(architecture, suite)),
            kernel,
          ),
        ),
      ]
    }),
  )
  const images = new Map()
  for (const name of names) {
    const { architecture } = GUESTS[name]
    if (images.has(architecture)) continue
    const image = join(work, `${architecture}.cpio`)
    const packages = packagesOf(architecture, PROGRAMS_SUITE)
    const targets = join(work, `targets-${architecture}`)
    const make = () => makeImage({ root, cache, packages, architecture, compiled, tests, work: targets })
    writeFileSync(image, timed(`image of ${architecture}`, make))
    images.set(architecture, image)
  }
  return { kernels, images }
}

/** Runs `work` for each item, so many at a time, in order. */
async function eachOf(items, atATime, work) {
  const rest = [...items]
  const worker = async () => {
    for (let item = rest.shift(); item !== undefined; item = rest.shift()) await work(item)
  }
  await Promise.all(Array.from({ length: atATime }, worker))
}

async function main() {
  const words = process.argv.slice(2).filter((word) => !word.startsWith('--'))
  const names = Object.keys(GUESTS).filter((name) => words.length === 0 || words.includes(name))
  const unknown = words.filter((word) => !(word in GUESTS))
  const filter = option('tests')
  const tests = Object.fromEntries(
    names.map((name) => [name, guestTests(root, name).filter((file) => filter === undefined || file.includes(filter))]),
  )
  if (unknown.length > 0 || names.every((name) => tests[name].length === 0)) {
    console.error(`no such guest or test; there are ${Object.keys(GUESTS).join(', ')}`)
    return 2
  }
  const jobs = Number(option('jobs') ?? Math.min(2, availableParallelism()))
  mkdirSync(cache, { recursive: true })
  const work = mkdtempSync(join(cache, 'run-'))
  try {
    const { kernels, images } = prepare(names, tests, work)
    const results = new Map()
    await eachOf(names, jobs, async (name) => {
      const { architecture, lacks } = GUESTS[name]
      const begin = performance.now()
      const own = Object.entries(process.env).filter(([variable]) => variable.startsWith('UPROBE_TEST_'))
      const settings = { ...Object.fromEntries(own), UPROBE_GUEST: name, UPROBE_TEST_LACKS: lacks }
      const print = (line) => console.log(`${name.padEnd(10)} | ${line}`)
      const result = await boot({
        architecture,
        kernel: kernels.get(name),
        image: images.get(architecture),
        settings,
        limitMs: LIMIT_MS,
        print,
      })
      results.set(name, { ...result, seconds: (performance.now() - begin) / 1000 })
    })
    for (const [name, { failures }] of results) for (const line of failures) console.log(`${name.padEnd(10)} | ${line}`)
    for (const name of names) {
      const { passed, failed, skipped, wrong, seconds, processorSeconds } = results.get(name)
      console.log(
        `guest ${name}: ${wrong ?? 'passed'} (${passed} passed, ${failed} failed, ${skipped} skipped; ${seconds.toFixed(0)} s, ${processorSeconds.toFixed(0)} s of a processor)`,
      )
    }
    return [...results.values()].every(({ wrong }) => wrong === null) ? 0 : 1
  } finally {
    rmSync(work, { recursive: true, force: true })
  }
}

main().then(
  (status) => process.exit(status),
  (error) => {
    console.error(`guests: ${error.message}`)
    process.exit(1)
  },
)
