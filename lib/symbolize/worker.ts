/**
 * The symbolizing thread: sees processes and explains addresses, one question after the other.
 */
import { parentPort } from 'node:worker_threads'
import { UprobeError } from '../errors.js'
import { limitError } from '../shortage.js'
import { AddressSpaces } from './address-spaces.js'
import type { Answer, Question } from './messages.js'

async function answerTo(question: Question, spaces: AddressSpaces): Promise<Answer> {
  const { id } = question
  try {
    if (question.kind === 'symbolize') return { id, frames: await spaces.symbolize(question.requests), shortage: null }
    await spaces.see(question.pid)
    return { id, frames: [], shortage: null }
  } catch (error) {
    const limit = error instanceof UprobeError ? error : limitError(error, 'Stacks cannot be explained')
    if (limit?.code !== 'ERR_UPROBE_LIMIT') throw error
    return { id, frames: null, shortage: limit.message }
  }
}

function serve(port: NonNullable<typeof parentPort>): void {
  const spaces = new AddressSpaces()
  let work: Promise<void> = Promise.resolve()
  port.on('message', (question: Question) => {
    // What fails here is a mistake of ours: unhandled, it ends the thread, and whoever waits is told.
    work = work.then(async () => {
      port.postMessage(await answerTo(question, spaces))
    })
  })
}

if (parentPort !== null) serve(parentPort)
