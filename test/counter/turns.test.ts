/**
 * The order in which claims are worked on.
 */
import assert from 'node:assert/strict'
import test from 'node:test'
import { Turns } from '../../lib/counter/turns.js'

/** A promise, and what resolves it. */
function gate(): { readonly open: () => void; readonly opened: Promise<void> } {
  let open = (): void => undefined
  const opened = new Promise<void>((resolve) => {
    open = resolve
  })
  return { open, opened }
}

test('a command comes before the chores that wait, in the order of commands', async () => {
  const turns = new Turns()
  const done: string[] = []
  const { open, opened } = gate()
  const work = (name: string) => async () => {
    done.push(name)
  }
  const begun = gate()
  const all = [
    turns.chore(async () => {
      begun.open()
      await opened
      done.push('running chore')
    }),
    turns.chore(work('chore')),
    turns.chore(work('later chore')),
  ]
  await begun.opened
  all.push(turns.command(work('command')), turns.command(work('later command')))
  open()
  await Promise.all(all)
  assert.deepEqual(done, ['running chore', 'command', 'later command', 'chore', 'later chore'])
})

test('a chore is told of a command that comes, and of none that came before it', async () => {
  const turns = new Turns()
  const before = turns.command(async () => 'before')
  const begun = gate()
  const chore = turns.chore(async (signal) => {
    assert.equal(signal.aborted, false)
    const told = new Promise((resolve) => signal.addEventListener('abort', resolve, { once: true }))
    begun.open()
    await told
  })
  await begun.opened
  assert.equal(await turns.command(async () => 'command'), 'command')
  assert.equal(await before, 'before')
  await chore
  await turns.chore(async (signal) => assert.equal(signal.aborted, false))
})

test('whoever waited for a command may ask for the next before a chore is begun', async () => {
  const turns = new Turns()
  const done: string[] = []
  const first = turns.command(async () => undefined)
  const chore = turns.chore(async () => {
    done.push('chore')
  })
  await first
  await turns.command(async () => {
    done.push('command')
  })
  await chore
  assert.deepEqual(done, ['command', 'chore'])
})

test('what fails fails alone', async () => {
  const turns = new Turns()
  const failure = new Error('on purpose')
  await assert.rejects(
    turns.command(() => Promise.reject(failure)),
    failure,
  )
  await assert.rejects(
    turns.chore(() => Promise.reject(failure)),
    failure,
  )
  assert.equal(await turns.command(async () => 'next'), 'next')
})
