/**
 * Asking the agent that holds claims to give way.
 *
 * Each owner of leases listens on a Unix socket beside them. The directory belongs to one user and nobody else may enter it, so whoever can connect may ask. One question a
 * connection, one answer, a line of JSON each:
 *
 *     {"release":{"pid":4242}}     or null for all
 *     {"released":[{"pid":4242,"path":"/usr/bin/python3.11","provider":"python","name":"gc__start"}]}     or {"error":"…"}
 */
import { once } from 'node:events'
import { rmSync } from 'node:fs'
import { connect, createServer, type Server, type Socket } from 'node:net'
import { UprobeError } from '../errors.js'
import type { Logger } from '../log.js'
import type { LeaseDirectory } from './lease-directory.js'

/** A counter in one process that was given up. */
export interface ReleasedCounter {
  readonly pid: number
  readonly path: string
  readonly provider: string
  readonly name: string
}

/** Longest question. */
const MAX_QUESTION_BYTES = 4096
/** Longest answer: some thousands of counters. */
const MAX_ANSWER_BYTES = 16 * 1024 * 1024
/** How long to wait for an agent that was asked. One that takes longer (closing a hundred perf events alone takes ten seconds), or is stopped, gives way afterwards. */
const ANSWER_MS = 10_000

/** The path of an owner's socket, through the directory's descriptor: the name of a socket has at most 107 bytes. */
function socketPath(directory: LeaseDirectory, ownerId: string): string {
  return directory.pathOf(`owner-${ownerId}.sock`)
}

/** Listens for one owner. */
export class ControlServer {
  private constructor(
    private readonly server: Server,
    private readonly path: string,
    private readonly sockets: ReadonlySet<Socket>,
  ) {}

  /** @throws {UprobeError} `ERR_UPROBE_LEASE` */
  static async listen(
    directory: LeaseDirectory,
    ownerId: string,
    giveWay: (pid: number | null) => Promise<ReleasedCounter[]>,
    log: Logger,
  ): Promise<ControlServer> {
    const path = socketPath(directory, ownerId)
    const sockets = new Set<Socket>()
    const server = createServer((socket) => {
      sockets.add(socket)
      socket.on('close', () => sockets.delete(socket))
      // Whoever asks must not keep the agent alive.
      socket.unref()
      serve(socket, giveWay).catch((error: unknown) => {
        log.warn({ err: error }, 'a request to give way failed')
        socket.destroy()
      })
    })
    server.unref()
    try {
      server.listen(path)
      await once(server, 'listening')
    } catch (cause) {
      throw new UprobeError(
        'ERR_UPROBE_LEASE',
        `The lease directory ${directory.path} takes no socket. Give one on a local file system with leaseDir.`,
        { cause },
      )
    }
    server.on('error', (error) => log.warn({ err: error }, 'requests to give way are not heard any more'))
    return new ControlServer(server, path, sockets)
  }

  /** Stops listening and removes the socket. */
  async close(): Promise<void> {
    const closed = once(this.server, 'close')
    this.server.close()
    for (const socket of this.sockets) socket.destroy()
    await closed
    rmSync(this.path, { force: true })
  }
}

async function serve(socket: Socket, giveWay: (pid: number | null) => Promise<ReleasedCounter[]>): Promise<void> {
  const question = parseQuestion(await readLine(socket, MAX_QUESTION_BYTES))
  if (question === null) {
    socket.end(`${JSON.stringify({ error: 'not a question that is known' })}\n`)
    return
  }
  try {
    socket.end(`${JSON.stringify({ released: await giveWay(question.pid) })}\n`)
  } catch (error) {
    socket.end(`${JSON.stringify({ error: error instanceof Error ? error.message : String(error) })}\n`)
    throw error
  }
}

function parseQuestion(line: string): { pid: number | null } | null {
  try {
    const { release } = JSON.parse(line) as { release?: { pid?: unknown } }
    const pid = release?.pid
    return pid === null || (typeof pid === 'number' && Number.isInteger(pid) && pid > 0) ? { pid } : null
  } catch {
    return null
  }
}

/**
 * Asks an owner to give way.
 * @param pid - in one process; `null` for all its claims
 * @throws {UprobeError} `ERR_UPROBE_LEASE` if it does not answer, or cannot
 */
export async function askToGiveWay(directory: LeaseDirectory, ownerId: string, pid: number | null): Promise<ReleasedCounter[]> {
  const refusal = (why: string, cause?: unknown): UprobeError =>
    new UprobeError(
      'ERR_UPROBE_LEASE',
      `the agent did not give way: ${why}. Ask again, or end it; what it leaves then is found by \`uprobe repair\``,
      { cause },
    )
  const socket = connect(socketPath(directory, ownerId))
  socket.setTimeout(ANSWER_MS, () => socket.destroy(new Error(`no answer within ${ANSWER_MS / 1000} s`)))
  let answer: { released?: unknown; error?: unknown }
  try {
    await once(socket, 'connect')
    socket.write(`${JSON.stringify({ release: { pid } })}\n`)
    answer = JSON.parse(await readLine(socket, MAX_ANSWER_BYTES)) as typeof answer
  } catch (error) {
    throw refusal(error instanceof Error ? error.message : String(error), error)
  } finally {
    socket.destroy()
  }
  if (!Array.isArray(answer.released)) throw refusal(typeof answer.error === 'string' ? answer.error : 'its answer is not understood')
  return answer.released as ReleasedCounter[]
}

async function readLine(socket: Socket, limitBytes: number): Promise<string> {
  const pieces: Buffer[] = []
  let bytes = 0
  for await (const piece of socket.iterator({ destroyOnReturn: false }) as AsyncIterable<Buffer>) {
    const end = piece.indexOf(10)
    pieces.push(end < 0 ? piece : piece.subarray(0, end))
    bytes += piece.length
    if (bytes > limitBytes) throw new Error('the line is too long')
    if (end >= 0) break
  }
  return Buffer.concat(pieces).toString()
}
