/**
 * Builds the addon for every system that the package ships it for, into prebuilds/.
 *
 *     node scripts/prebuilds.mjs [x64] [arm64]
 *
 * arm64 is cross-built with Debian's compiler. Without CC and CXX set, node-gyp would silently write a file for the machine it runs on; scripts/check-prebuilds.mjs
 * looks at what came out.
 */
import { spawnSync } from 'node:child_process'
import { cpSync, existsSync, mkdtempSync, rmSync, symlinkSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const root = dirname(dirname(fileURLToPath(import.meta.url)))
const TOOLCHAINS = {
  x64: {},
  arm64: {
    CC: 'aarch64-linux-gnu-gcc',
    CXX: 'aarch64-linux-gnu-g++',
    AR: 'aarch64-linux-gnu-ar',
    PREBUILD_STRIP_BIN: 'aarch64-linux-gnu-strip',
  },
}
const wanted = process.argv.slice(2).length > 0 ? process.argv.slice(2) : Object.keys(TOOLCHAINS)

/** The headers that the running Node was built with, where they are installed. */
function nodedir() {
  for (const candidate of [process.env.npm_config_nodedir, dirname(dirname(process.execPath)), '/usr']) {
    if (candidate && existsSync(join(candidate, 'include/node/node_version.h'))) return candidate
  }
  return undefined
}

for (const arch of wanted) {
  const toolchain = TOOLCHAINS[arch]
  if (toolchain === undefined) {
    console.error(`prebuilds: there is no toolchain for ${arch}; there are ${Object.keys(TOOLCHAINS).join(', ')}`)
    process.exit(2)
  }
  // Each architecture is built in a copy, so that the build of this checkout, which the tests load, stays as it is.
  const copy = mkdtempSync(join(tmpdir(), 'uprobe-prebuild-'))
  try {
    for (const name of ['package.json', 'binding.gyp', 'native']) cpSync(join(root, name), join(copy, name), { recursive: true })
    symlinkSync(join(root, 'node_modules'), join(copy, 'node_modules'))
    const headers = nodedir()
    const { status, stdout, stderr } = spawnSync(
      process.execPath,
      [join(root, 'node_modules/prebuildify/bin.js'), '--napi', '--strip', '--tag-libc', '--arch', arch, '-t', '20.19.0', '--out', copy],
      {
        cwd: copy,
        encoding: 'utf8',
        maxBuffer: 1 << 28,
        env: {
          ...process.env,
          ...toolchain,
          PATH: `${join(root, 'node_modules/.bin')}:${process.env.PATH}`,
          ...(headers === undefined ? {} : { npm_config_nodedir: headers }),
        },
      },
    )
    if (status !== 0) {
      console.error(stdout, stderr)
      console.error(`prebuilds: building for ${arch} failed`)
      if (arch === 'arm64') console.error('           On Debian: apt-get install --no-install-recommends g++-aarch64-linux-gnu')
      process.exit(1)
    }
    const folder = join('prebuilds', `linux-${arch}`)
    rmSync(join(root, folder), { recursive: true, force: true })
    cpSync(join(copy, folder), join(root, folder), { recursive: true })
    console.error(`prebuilds: built for linux-${arch}`)
  } finally {
    rmSync(copy, { recursive: true, force: true })
  }
}
