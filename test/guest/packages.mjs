/**
 * Debian packages for the guests: kernels of several suites, busybox, and the libraries of another architecture.
 *
 * They are fetched through an apt configuration of our own, with state and cache in a folder of ours, so that nothing of this machine's package management changes.
 */
import { execFileSync } from 'node:child_process'
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

const KEYRING = '/usr/share/keyrings/debian-archive-keyring.gpg'

/** The address that this machine fetches Debian from. */
function mirror() {
  const folder = '/etc/apt/sources.list.d'
  const lists = ['/etc/apt/sources.list', ...list(folder).map((name) => join(folder, name))]
  const text = lists
    .filter(existsSync)
    .map((path) => readFileSync(path, 'utf8'))
    .join('\n')
  return /^(?:URIs:|deb(?: \[[^\]]*\])?)\s+(\S+\/debian)\/?(?:\s|$)/m.exec(text)?.[1] ?? 'http://deb.debian.org/debian'
}

function list(directory) {
  return existsSync(directory) ? readdirSync(directory) : []
}

/** The lines in which apt says what went wrong. */
function complaint(error) {
  const lines = String(error.stderr ?? error.message).split('\n')
  return lines.filter((line) => /^[EW]:/.test(line)).join('\n') || lines.join('\n').trim()
}

/** A private view of one suite of Debian's archive for one architecture. */
export class Packages {
  #directory
  #config
  /** How it is called in messages. */
  name
  #fresh = false

  /**
   * @param directory - kept between runs, so that packages are fetched once
   * @param architecture - `amd64` or `arm64`
   * @param suite - such as `bookworm`
   */
  constructor(directory, architecture, suite) {
    if (!existsSync(KEYRING)) throw new Error(`there is no ${KEYRING}: guests need the package debian-archive-keyring`)
    const archive = mirror()
    this.name = `${archive} ${suite} (${architecture})`
    this.#directory = join(directory, `apt-${architecture}-${suite}`)
    this.#config = join(this.#directory, 'apt.conf')
    for (const name of ['state/lists/partial', 'cache/archives/partial', 'roots', 'empty'])
      mkdirSync(join(this.#directory, name), { recursive: true })
    writeFileSync(join(this.#directory, 'sources.list'), `deb [signed-by=${KEYRING}] ${archive} ${suite} main\n`)
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
        'Acquire::Retries "3";',
        // Without this, apt-get update succeeds when nothing could be fetched.
        'APT::Update::Error-Mode "any";',
        'APT::Sandbox::User "root";',
      ].join('\n'),
    )
  }

  #run(directory, program, ...args) {
    return execFileSync(program, args, {
      cwd: directory,
      encoding: 'utf8',
      env: { ...process.env, LC_ALL: 'C', APT_CONFIG: this.#config },
      stdio: ['ignore', 'pipe', 'pipe'],
      maxBuffer: 1 << 28,
    })
  }

  #update() {
    if (this.#fresh) return
    try {
      this.#run(this.#directory, 'apt-get', 'update')
    } catch (error) {
      throw new Error(`the list of packages of ${this.name} could not be fetched:\n${complaint(error)}`)
    }
    this.#fresh = true
  }

  /** Names of packages that match. */
  names(pattern) {
    if (!list(join(this.#directory, 'state/lists')).some((name) => name.endsWith('_Packages'))) this.#update()
    const names = this.#run(this.#directory, 'apt-cache', 'pkgnames').split('\n')
    return names.filter((name) => pattern.test(name))
  }

  /** Fetches and unpacks a package; returns the folder of its files. */
  unpack(name) {
    const root = join(this.#directory, 'roots', name)
    if (existsSync(root)) return root
    this.names(/^$/)
    const making = join(this.#directory, 'making')
    rmSync(making, { recursive: true, force: true })
    mkdirSync(making)
    this.#download(making, name)
    const file = readdirSync(making).find((candidate) => candidate.endsWith('.deb'))
    if (file === undefined) throw new Error(`apt-get fetched no ${name} from ${this.name}`)
    execFileSync('dpkg-deb', ['-x', join(making, file), join(making, 'root')])
    // What is there under its name is complete.
    renameSync(join(making, 'root'), root)
    rmSync(making, { recursive: true })
    return root
  }

  #download(directory, name) {
    try {
      this.#run(directory, 'apt-get', 'download', name)
    } catch (error) {
      // A list that was kept from an earlier run names packages that the archive has replaced meanwhile.
      if (this.#fresh) throw new Error(`${name} could not be fetched from ${this.name}:\n${complaint(error)}`)
      this.#update()
      this.#download(directory, name)
    }
  }
}

/**
 * The image of a kernel.
 * @param suites - where to look for it; the newest of all is taken
 * @param pattern - what the name of its package matches
 */
export function kernelOf(suites, pattern) {
  const found = suites.flatMap((packages) => packages.names(pattern).map((name) => ({ packages, name })))
  // Behind a plus sign is the name of Debian's release, which says nothing of the kernel's age.
  const age = ({ name }) => name.replace(/\+.*/, '')
  const newest = found.sort((a, b) => age(a).localeCompare(age(b), 'en', { numeric: true })).at(-1)
  if (newest === undefined) throw new Error(`no package of ${suites.map(({ name }) => name).join(' or ')} matches ${pattern}`)
  // Some packages have the image in another one.
  const image =
    imageIn(newest.packages.unpack(newest.name)) ?? imageIn(newest.packages.unpack(newest.name.replace('linux-image', 'linux-binary')))
  if (image === undefined) throw new Error(`${newest.name} holds no kernel`)
  return image
}

function imageIn(files) {
  const folders = ['boot', ...list(join(files, 'usr/lib/modules')).map((version) => `usr/lib/modules/${version}`)]
  for (const folder of folders) {
    const image = list(join(files, folder)).find((file) => file.startsWith('vmlinuz'))
    if (image !== undefined) return join(files, folder, image)
  }
  return undefined
}
