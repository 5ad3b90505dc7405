/**
 * The package as it is published: packed with its prebuilds, and installed into an empty project.
 */
import { execFileSync } from 'node:child_process'
import { existsSync, writeFileSync } from 'node:fs'
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

/** Builds the prebuilds that are missing, and packs; returns the path of the tarball. */
export function pack(t: Cleanup): string {
  if (!existsSync(join(ROOT, 'prebuilds/linux-x64')) || !existsSync(join(ROOT, 'prebuilds/linux-arm64'))) {
    execFileSync(process.execPath, ['scripts/prebuilds.mjs'], { cwd: ROOT, stdio: 'pipe' })
  }
  const directory = tempDirectory(t)
  npm(ROOT, 'pack', '--ignore-scripts', '--pack-destination', directory)
  const { name, version } = JSON.parse(execFileSync('cat', [join(ROOT, 'package.json')], { encoding: 'utf8' })) as {
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
