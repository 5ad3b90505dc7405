/**
 * Makes a checkout ready to run: packages, addon, JavaScript. What is up to date is left alone, so that it costs nothing before every command.
 *
 *     node scripts/setup.mjs            everything that is missing or older than its sources
 *     node scripts/setup.mjs --native   only the addon
 *     node scripts/setup.mjs --force    build all anew
 */
import { spawnSync } from 'node:child_process'
import { chmodSync, existsSync, readdirSync, readFileSync, rmSync, statSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const root = dirname(dirname(fileURLToPath(import.meta.url)))
const force = process.argv.includes('--force')
const onlyNative = process.argv.includes('--native')
process.chdir(root)

/** When something last changed in some files and folders; removing a file changes its folder. */
function newest(...paths) {
  return Math.max(
    0,
    ...paths.filter(existsSync).map((path) => {
      const stat = statSync(path)
      return stat.isDirectory() ? Math.max(stat.mtimeMs, newest(...readdirSync(path).map((name) => join(path, name)))) : stat.mtimeMs
    }),
  )
}

function run(what, command, args, env = {}) {
  console.error(`setup: ${what}`)
  const { status, stdout, stderr, error } = spawnSync(command, args, {
    encoding: 'utf8',
    env: { ...process.env, ...env },
    maxBuffer: 1 << 28,
  })
  if (status === 0) return
  console.error(stdout ?? '')
  console.error(stderr ?? '')
  console.error(`setup: ${what} failed${error ? `: ${error.message}` : ''}`)
  process.exit(1)
}

/** Whether the shell finds a program. */
function has(program) {
  return (process.env.PATH ?? '').split(':').some((directory) => directory !== '' && existsSync(join(directory, program)))
}

function demandBuildTools() {
  const missing = ['make', 'g++', 'python3'].filter((program) => !has(program))
  if (missing.length === 0) return
  console.error(`setup: building the addon takes ${missing.join(', ')}, which ${missing.length === 1 ? 'is' : 'are'} not installed.`)
  console.error('       On Debian: apt-get install --no-install-recommends make g++ python3')
  process.exit(1)
}

/**
 * Node's headers: those that npm is told of, else those that are installed with this very version of Node; otherwise node-gyp downloads them.
 */
function headers() {
  if (process.env.npm_config_nodedir || process.env.npm_package_config_node_gyp_nodedir) return {}
  for (const nodedir of [dirname(dirname(process.execPath)), '/usr']) {
    const header = join(nodedir, 'include/node/node_version.h')
    if (!existsSync(header)) continue
    const text = readFileSync(header, 'utf8')
    const version = ['MAJOR', 'MINOR', 'PATCH'].map((part) => new RegExp(`#define NODE_${part}_VERSION (\\d+)`).exec(text)?.[1]).join('.')
    if (version === process.versions.node) return { npm_config_nodedir: nodedir }
  }
  return {}
}

const lock = 'node_modules/.package-lock.json'
if (!existsSync(lock) || newest('package-lock.json') > newest(lock)) {
  run('installing packages (npm ci)', 'npm', ['ci', '--ignore-scripts', '--no-audit', '--no-fund'])
}

if (process.platform === 'linux') {
  const addon = 'build/Release/uprobe.node'
  if (force || newest('native', 'binding.gyp') > newest(addon)) {
    demandBuildTools()
    run('building the addon (node-gyp)', process.execPath, ['node_modules/node-gyp/bin/node-gyp.js', 'rebuild', '--jobs', 'max'], headers())
  }
}

if (!onlyNative && (force || newest('lib', 'tsconfig.json') > newest('dist'))) {
  // With errors tsc writes nothing (noEmitOnError), so that the next run compiles again.
  rmSync('dist', { recursive: true, force: true })
  run('compiling TypeScript (tsc)', process.execPath, ['node_modules/typescript/bin/tsc', '-p', 'tsconfig.json'])
  chmodSync('dist/cli/main.js', 0o755)
}
