/**
 * A PostgreSQL 15 server of the test's own: a fresh copy of Debian's program, its own data, its own socket, no network.
 *
 * The server finds its libraries and its shared files relative to where its binary lies, so the copy lies in a tree of the same shape
 * whose other branches are links to the packaged files. It refuses to run as root, so it runs as the user `postgres`. Each connection is a process of its own, forked
 * from the postmaster.
 */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process'
import { chmodSync, chownSync, copyFileSync, existsSync, mkdirSync, readFileSync, symlinkSync } from 'node:fs'
import { join } from 'node:path'
import { Target } from './target.js'
import { type Cleanup, tempDirectory } from './temp.js'
import { waitFor } from './wait.js'

const PACKAGED = '/usr/lib/postgresql/15'
const SHARED = '/usr/share/postgresql/15'

/** The packaged server. */
export const POSTGRES = `${PACKAGED}/bin/postgres`

const SETTINGS = {
  autovacuum: 'off',
  fsync: 'off',
  listen_addresses: '',
  max_parallel_workers: '0',
  max_connections: '20',
  shared_buffers: '16MB',
}

interface Account {
  readonly uid: number
  readonly gid: number
}

function accountOf(user: string): Account {
  const line = readFileSync('/etc/passwd', 'utf8')
    .split('\n')
    .find((l) => l.startsWith(`${user}:`))
  const [, , uid, gid] = line?.split(':') ?? []
  if (uid === undefined || gid === undefined) throw new Error(`there is no user ${user}`)
  return { uid: Number(uid), gid: Number(gid) }
}

/** A running server. */
export class Postgres {
  private constructor(
    /** The copy of the server's binary that runs. */
    readonly path: string,
    /** Process id of the postmaster. */
    readonly pid: number,
    private readonly socketDirectory: string,
    private readonly account: Account,
  ) {}

  /** Makes a database cluster and starts a server on it. */
  static async start(t: Cleanup): Promise<Postgres> {
    const account = accountOf('postgres')
    const root = tempDirectory(t)
    const bin = join(root, 'usr/lib/postgresql/15/bin')
    mkdirSync(bin, { recursive: true })
    mkdirSync(join(root, 'usr/share/postgresql'), { recursive: true })
    symlinkSync(`${PACKAGED}/lib`, join(root, 'usr/lib/postgresql/15/lib'))
    symlinkSync(SHARED, join(root, 'usr/share/postgresql/15'))
    const path = join(bin, 'postgres')
    copyFileSync(POSTGRES, path)
    chmodSync(path, 0o755)
    const data = join(root, 'data')
    const sockets = join(root, 'sockets')
    for (const directory of [data, sockets]) {
      mkdirSync(directory, { mode: 0o700 })
      chownSync(directory, account.uid, account.gid)
    }
    const initdb = spawnSync(`${PACKAGED}/bin/initdb`, ['-A', 'trust', '-N', '-U', 'postgres', '--locale=C', '-E', 'UTF8', '-D', data], {
      ...account,
      cwd: root,
      encoding: 'utf8',
    })
    if (initdb.status !== 0) throw new Error(`initdb failed: ${initdb.stderr}`)

    const settings = Object.entries(SETTINGS).flatMap(([name, value]) => ['-c', `${name}=${value}`])
    const server = spawn(path, ['-D', data, '-k', sockets, ...settings], { ...account, cwd: root, stdio: ['ignore', 'ignore', 'pipe'] })
    let log = ''
    server.stderr.setEncoding('utf8').on('data', (text: string) => {
      log += text
    })
    t.after(() => stop(server))
    await waitFor('PostgreSQL to accept connections', () => {
      if (server.exitCode !== null) throw new Error(`PostgreSQL did not start: ${log}`)
      return log.includes('ready to accept connections') && existsSync(join(sockets, '.s.PGSQL.5432'))
    })
    if (server.pid === undefined) throw new Error('PostgreSQL has no pid')
    return new Postgres(path, server.pid, sockets, account)
  }

  /** Runs statements, one after another, over one connection of its own. Returns what they print, unaligned. */
  async psql(statements: readonly string[]): Promise<string> {
    const client = spawn(
      `${PACKAGED}/bin/psql`,
      ['-X', '-q', '-At', '-v', 'ON_ERROR_STOP=1', '-h', this.socketDirectory, '-U', 'postgres', '-f', '-'],
      {
        ...this.account,
        cwd: '/',
        stdio: 'pipe',
      },
    )
    let output = ''
    let errors = ''
    client.stdout.setEncoding('utf8').on('data', (text: string) => {
      output += text
    })
    client.stderr.setEncoding('utf8').on('data', (text: string) => {
      errors += text
    })
    client.stdin.end(statements.map((statement) => `${statement};\n`).join(''))
    const status = await new Promise((resolve, reject) => {
      client.once('error', reject)
      client.once('close', resolve)
    })
    if (status !== 0) throw new Error(`psql failed: ${errors}`)
    return output
  }

  /** Opens a connection that stays, and with it a backend of its own. */
  async connect(t: Cleanup): Promise<Connection> {
    const psql = [`${PACKAGED}/bin/psql`, '-X', '-q', '-At', '-h', this.socketDirectory, '-U', 'postgres', '-f', '-']
    const client = await Target.start(t, '/bin/sh', { args: ['-c', 'echo ready; exec "$@"', 'sh', ...psql], ...this.account, cwd: '/' })
    const pid = Number(await client.ask('select pg_backend_pid();'))
    return { pid, query: (statement) => client.ask(`${statement};`) }
  }
}

/** A connection, and the process that serves it. */
export interface Connection {
  /** Process id of the backend. */
  readonly pid: number
  /** Runs a statement whose result is one line. */
  query(statement: string): Promise<string>
}

/** Ends the server and its children at once, as `pg_ctl stop -m immediate` does. */
async function stop(server: ChildProcess): Promise<void> {
  if (server.exitCode !== null || server.signalCode !== null) return
  const ended = new Promise((resolve) => server.once('close', resolve))
  server.kill('SIGQUIT')
  await ended
}
