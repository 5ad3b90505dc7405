/**
 * The package as it is published: packed with its prebuilds, and installed into an empty project.
 */
import { execFileSync } from 'node:child_process'
import { existsSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { type Cleanup, tempDirectory } from '../support/temp.js'

export const ROOT = join(__dirname, '../..')

/** Environment of an npm that was not started by npm: what the outer one exports (its project, its options) must not steer the inner one. */
export function cleanEnvironment(path = process.env.PATH ?? ''): NodeJS.ProcessEnv {
  const entries = Object.entries(process.env).filter(([name]) => !name.startsWith('npm_') || name === 'npm_config_registry')
  return { ...Object.fromEntries(entries), PATH: path }
}

/** Runs npm in a directory; returns what it prints. */
export function npm(cwd: string, ...args: string[]): string {
  return execFileSync('npm', args, { cwd, encoding: 'utf8', env: cleanEnvironment(), stdio: ['ignore', 'pipe', 'pipe'] })
}

/** Time of the newest file in a folder. */
function newest(folder: string): number {
  return Math.max(...readdirSync(folder, { recursive: true, encoding: 'utf8' }).map((name) => statSync(join(folder, name)).mtimeMs))
}

/** Whether a prebuild is there and made of the sources as they are. */
function isFresh(folder: string): boolean {
  return existsSync(folder) && newest(folder) > Math.max(newest(join(ROOT, 'native')), statSync(join(ROOT, 'binding.gyp')).mtimeMs)
}

/** Builds the prebuilds unless they are fresh, and packs; returns the path of the tarball. */
export function pack(t: Cleanup): string {
  if (!['linux-x64', 'linux-arm64'].every((name) => isFresh(join(ROOT, 'prebuilds', name)))) {
    execFileSync(process.execPath, ['scripts/prebuilds.mjs'], { cwd: ROOT, stdio: 'pipe' })
  }
  const directory = tempDirectory(t)
  npm(ROOT, 'pack', '--ignore-scripts', '--pack-destination', directory)
  const { name, version } = JSON.parse(readFileSync(join(ROOT, 'package.json'), 'utf8')) as {
    name: string
    version: string
  }
  return join(directory, `${name}-${version}.tgz`)
}

/** Installs a tarball into an empty project; returns the project. */
export function install(t: Cleanup, tarball: string): string {
  const project = tempDirectory(t)
  writeFileSync(join(project, 'package.json'), JSON.stringify({ name: 'agent', private: true }))
  npm(project, 'install', '--no-audit', '--no-fund', tarball)
  return project
}
