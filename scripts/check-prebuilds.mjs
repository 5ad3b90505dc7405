/**
 * Looks at every prebuilt addon: is it for the machine its folder names, stripped, with its USDT notes, and loadable on systems as old as we promise?
 *
 * The symbol versions decide the last: a file that needs a newer glibc or libstdc++ than a system has does not load there. Debian 10 and RHEL 8 have GLIBC 2.28 and
 * GLIBCXX 3.4.25. Node-API 8 is what Node 20 and all later versions offer; every function that came after it is called node_api_*, none before is.
 */
import { spawnSync } from 'node:child_process'
import { readdirSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const root = dirname(dirname(fileURLToPath(import.meta.url)))
const MACHINES = { 'linux-x64': /X86-64/, 'linux-arm64': /AArch64/ }
const MOST = { GLIBC: [2, 28], GLIBCXX: [3, 4, 25], CXXABI: [1, 3, 11] }
const problems = []

function readelf(...args) {
  const { status, stdout, stderr } = spawnSync('readelf', ['-W', ...args], { encoding: 'utf8', maxBuffer: 1 << 28 })
  if (status !== 0) throw new Error(`readelf ${args.join(' ')}: ${stderr}`)
  return stdout
}

function isNewer(version, most) {
  const parts = version.split('.').map(Number)
  for (let index = 0; index < Math.max(parts.length, most.length); index++) {
    const difference = (parts[index] ?? 0) - (most[index] ?? 0)
    if (difference !== 0) return difference > 0
  }
  return false
}

for (const [folder, machine] of Object.entries(MACHINES)) {
  let files = []
  try {
    files = readdirSync(join(root, 'prebuilds', folder)).filter((name) => name.endsWith('.node'))
  } catch {
    problems.push(`${folder}: there is no prebuild; run npm run prebuilds`)
  }
  if (files.length > 1) problems.push(`${folder}: several prebuilds, and one is expected`)
  for (const name of files) {
    const path = join(root, 'prebuilds', folder, name)
    const fail = (what) => problems.push(`${folder}/${name}: ${what}`)
    if (!machine.test(readelf('-h', path))) fail('is for another machine')
    if (/\.symtab/.test(readelf('-S', path))) fail('is not stripped')
    const notes = readelf('-n', path)
    if (!/Provider: uprobe\s+Name: demo\s+Location: \S+, Base: \S+, Semaphore: 0x0*[1-9a-f]/.test(notes))
      fail('has no usdt:uprobe:demo with a semaphore')
    if (!/Provider: uprobe\s+Name: selftest/.test(notes)) fail('has no usdt:uprobe:selftest')
    const needs = readelf('-V', path)
    const highest = {}
    for (const [, family, version] of needs.matchAll(/Name: (GLIBC|GLIBCXX|CXXABI)_([\d.]+)/g)) {
      if (isNewer(version, MOST[family])) fail(`needs ${family}_${version}, newer than ${MOST[family].join('.')}`)
      if (highest[family] === undefined || isNewer(version, highest[family].split('.').map(Number))) highest[family] = version
    }
    for (const [, symbol] of readelf('--dyn-syms', path).matchAll(/ UND (node_api_\w+)/g))
      fail(`uses ${symbol}, which is newer than Node-API 8`)
    console.log(
      `${folder}/${name}: ${Object.entries(highest)
        .map(([family, version]) => `${family} ${version}`)
        .join(', ')}`,
    )
  }
}
for (const problem of problems) console.error(`check-prebuilds: ${problem}`)
process.exit(problems.length === 0 ? 0 : 1)
