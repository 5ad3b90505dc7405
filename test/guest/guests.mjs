/**
 * The guests: which kernels, what they cannot do, and which tests they run.
 */
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'

/**
 * Guests by name. The newest kernel that the suites have and whose package's name fits is taken. `lacks` is what the kernel cannot do, as test/support/features.ts takes it; `only` restricts the
 * tests to files that match. They are started in this order: those that take longest begin first.
 *
 * They differ where the package does: 5.10 is the oldest long-term kernel, accounts maps to RLIMIT_MEMLOCK and has the old loader's limits; 6.1 is the last without
 * uprobe_multi; 6.12 has it, with its first correct filter by process; 6.18 replaces nops of five bytes; the newest one shows what will be; arm64 has other registers, instructions and breakpoints.
 */
export const GUESTS = {
  'arm64-6.12': { architecture: 'arm64', suites: ['trixie'], lacks: 'last-thread', kernel: /^linux-image-6\.12\.\d.*-cloud-arm64$/ },
  newest: {
    architecture: 'amd64',
    suites: ['trixie-backports', 'sid'],
    lacks: '',
    kernel: /^linux-image-([7-9]|\d\d)\.\d+\.\d.*-cloud-amd64$/,
  },
  '5.10': {
    architecture: 'amd64',
    suites: ['bullseye'],
    lacks: 'multi,sleepable,last-thread',
    kernel: /^linux-image-5\.10\.\d.*-cloud-amd64$/,
  },
  6.1: {
    architecture: 'amd64',
    suites: ['bookworm'],
    lacks: 'multi,sleepable,last-thread',
    kernel: /^linux-image-6\.1\.\d.*-cloud-amd64$/,
  },
  6.12: { architecture: 'amd64', suites: ['trixie'], lacks: 'last-thread', kernel: /^linux-image-6\.12\.\d.*-cloud-amd64$/ },
  6.18: {
    architecture: 'amd64',
    suites: ['trixie-backports'],
    lacks: 'nop5',
    kernel: /^linux-image-6\.18\.\d.*-cloud-amd64$/,
    only: /nop5|integration\/usdt/,
  },
}

/** Folders of tests whose outcome can depend on the kernel. */
const FOLDERS = ['native', 'capture', 'counter', 'integration']
/** How a test of theirs comes to the kernel: it loads the addon, or starts a program and traces it. */
const KERNEL = /from '(\.\.\/support\/(target|agent)|\.\.\/\.\.\/lib\/native|\.\/kernel)\.js'/

/** What the first comment of a test file says if it is to be left out all the same, with the reason behind it; or if some guests, named as above, are enough. */
const LEFT_OUT = /^ \* Not for guests: /m
const ENOUGH = /^ \* In guests on (.+) only: /m
/**
 * What it says if it may leave uprobes behind. A uprobe that leaked does not hold its inode, and is taken for that of whatever file comes to have the inode's place in memory (`alloc_uprobe`,
 * kernel/events/uprobes.c); so nothing that probes other files comes after it. The number says
 * in which order these come: those that leave most are the very last.
 */
const LAST = /^ \* In guests last \((\d)\): /m

/**
 * The compiled tests that a guest runs, relative to the root of the package: those that come to the kernel. What a test needs and a guest has not (a compiler, a package of Debian) makes
 * the test skipped there, since it says so itself (test/support/needs.ts).
 */
export function guestTests(root, guest) {
  const files = FOLDERS.flatMap((folder) =>
    readdirSync(join(root, 'test', folder))
      .filter((name) => name.endsWith('.test.ts') && isFor(guest, readFileSync(join(root, 'test', folder, name), 'utf8')))
      .map((name) => `test/${folder}/${name.replace(/ts$/, 'js')}`)
      .filter((name) => GUESTS[guest].only?.test(name) ?? true),
  )
  const rank = (name) => Number(LAST.exec(readFileSync(join(root, name.replace(/js$/, 'ts')), 'utf8'))?.[1] ?? 0)
  return files.sort((a, b) => rank(a) - rank(b))
}

function isFor(guest, text) {
  if (!KERNEL.test(text) || LEFT_OUT.test(text)) return false
  const enough = ENOUGH.exec(text)?.[1].split(/, | and /)
  const unknown = enough?.find((name) => !(name in GUESTS))
  if (unknown !== undefined) throw new Error(`a test is for the guest ${unknown}, which there is not`)
  return enough?.includes(guest) ?? true
}
