/**
 * Debian packages for the guests: kernels of several suites, busybox, and the libraries of another architecture.
 *
 * They are fetched through an apt configuration of our own, with state and cache in a folder of ours, so that nothing of this machine's package management changes.
 */
import { execFileSync } from 'node:child_process'
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

/** Which suites hold which kernels; `-security` has the newest of the older ones. */
const SUITES = ['bullseye', 'bookworm', 'bookworm-backports', 'trixie', 'forky', 'sid']

/** The address that this machine fetches Debian from. */
function mirror() {
  const lists = ['/etc/apt/sources.list', ...readdirSync('/etc/apt/sources.list.d').map((name) => join('/etc/apt/sources.list.d', name))]
  const text = lists
    .filter(existsSync)
    .map((path) => readFileSync(path, 'utf8'))
    .join('\n')
  return /^(?:URIs:|deb(?: \[[^\]]*\])?)\s+(\S+\/debian)\/?(?:\s|$)/m.exec(text)?.[1] ?? 'http://deb.debian.org/debian'
}

/** A private view of Debian's archive for one architecture. */
export class Packages {
  #directory
  #config

  /**
   * @param directory - kept between runs, so that packages are fetched once
   * @param architecture - `amd64` or `arm64`
   */
  constructor(directory, architecture) {
    this.#directory = join(directory, `apt-${architecture}`)
    this.#config = join(this.#directory, 'apt.conf')
    for (const name of ['state/lists/partial', 'cache/archives/partial', 'debs', 'roots', 'empty'])
      mkdirSync(join(this.#directory, name), { recursive: true })
    const keyring = '/usr/share/keyrings/debian-archive-keyring.gpg'
    writeFileSync(
      join(this.#directory, 'sources.list'),
      SUITES.map((suite) => `deb [signed-by=${keyring}] ${mirror()} ${suite} main`).join('\n'),
    )
    writeFileSync(
      this.#config,
      [
        `Dir::State "${this.#directory}/state";`,
        `Dir::State::status "/dev/null";`,
        `Dir::Cache "${this.#directory}/cache";`,
        `Dir::Etc::sourcelist "${this.#directory}/sources.list";`,
        `Dir::Etc::sourceparts "${this.#directory}/empty";`,
        `APT::Architecture "${architecture}";`,
        `APT::Architectures { "${architecture}"; };`,
        'Acquire::Languages "none";',
        'Acquire::Check-Valid-Until "false";',
        'APT::Sandbox::User "root";',
      ].join('\n'),
    )
  }

  #run(program, ...args) {
    return execFileSync(program, args, {
      cwd: join(this.#directory, 'debs'),
      encoding: 'utf8',
      env: { ...process.env, APT_CONFIG: this.#config },
      stdio: ['ignore', 'pipe', 'pipe'],
      maxBuffer: 1 << 28,
    })
  }

  /** Fetches the lists, if that was not done yet. */
  update() {
    if (!readdirSync(join(this.#directory, 'state/lists')).some((name) => name.endsWith('Packages'))) {
      try {
        this.#run('apt-get', 'update')
      } catch (error) {
        // A suite that does not exist (any more) is no reason to do without the others.
        if (!readdirSync(join(this.#directory, 'state/lists')).some((name) => /_Packages/.test(name))) throw error
      }
    }
  }

  /** Names of packages that match, newest version number last. */
  names(pattern) {
    const names = this.#run('apt-cache', 'pkgnames')
      .split('\n')
      .filter((name) => pattern.test(name))
    return names.sort((a, b) => a.localeCompare(b, 'en', { numeric: true }))
  }

  /** Fetches and unpacks a package; returns the folder of its files. */
  unpack(name) {
    const root = join(this.#directory, 'roots', name)
    if (existsSync(root)) return root
    this.#run('apt-get', 'download', name)
    const file = readdirSync(join(this.#directory, 'debs')).find((candidate) => candidate.startsWith(`${name}_`))
    if (file === undefined) throw new Error(`apt-get did not fetch ${name}`)
    try {
      execFileSync('dpkg', ['-x', join(this.#directory, 'debs', file), root])
    } catch (error) {
      rmSync(root, { recursive: true, force: true })
      throw error
    }
    rmSync(join(this.#directory, 'debs', file))
    return root
  }
}
