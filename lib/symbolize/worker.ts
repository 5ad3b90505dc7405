/**
 * The symbolizing thread: sees processes and explains addresses, one question after the other.
 */
import { parentPort } from 'node:worker_threads'
import { AddressSpaces } from './address-spaces.js'
import type { Answer, Question } from './messages.js'

async function answerTo(question: Question, spaces: AddressSpaces): Promise<Answer['frames']> {
  if (question.kind === 'see') {
    await spaces.see(question.pid)
    return []
  }
  return spaces.symbolize(question.requests)
}

function serve(port: NonNullable<typeof parentPort>): void {
  const spaces = new AddressSpaces()
  let work: Promise<void> = Promise.resolve()
  port.on('message', (question: Question) => {
    // What fails here is a mistake of ours: unhandled, it ends the thread, and whoever waits is told.
    work = work.then(async () => {
      const answer: Answer = { id: question.id, frames: await answerTo(question, spaces) }
      port.postMessage(answer)
    })
  })
}

if (parentPort !== null) serve(parentPort)
