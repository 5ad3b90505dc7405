/**
 * The command line on ten thousand sites.
 */
import assert from 'node:assert/strict'
import test from 'node:test'
import { Cli, failed, jsonOf, succeeded, uprobe } from '../support/cli.js'
import { needs } from '../support/needs.js'
import { assertSemaphores, numberOf, SITES, startThousands, variedHits } from './thousands.js'

const GCC = needs({ programs: ['gcc'] })

test('counts ten thousand sites when that many are meant, each exactly', GCC, async (t) => {
  const program = await startThousands(t)
  const cli = Cli.start(t, ['count', program.spec('*'), '-p', String(program.pid), '--max-sites', String(SITES), '--json'])
  assert.equal(await cli.attached(), `attached ${SITES} sites of ${SITES} probes`)
  await assertSemaphores(program, SITES, 1)
  await program.target.ask('vary')
  cli.kill('SIGINT')
  // No bar is drawn where standard error is no terminal: nothing but the line that says it is attached.
  const rows = jsonOf(succeeded(await cli.ended)) as Array<{ probe: string; hits: number }>
  assert.equal(rows.length, SITES)
  assert.ok(rows.every(({ probe, hits }) => hits === variedHits(numberOf(probe))))
  await assertSemaphores(program, 0, 1)
})

test('refuses them otherwise, and says what to give', GCC, async (t) => {
  const program = await startThousands(t)
  for (const command of [['trace'], ['count'], ['hist', '--arg', '0']]) {
    const refusal = failed(await uprobe(t, ...command, program.spec('*'), '-p', String(program.pid)), 1, 'ERR_UPROBE_TOO_MANY_SITES')
    assert.match(refusal, /stands for 10000 sites, and --max-sites is 1024\. .* raise --max-sites\./)
    failed(await uprobe(t, ...command, program.spec('7??'), '-p', String(program.pid), '--max-sites', '99'), 1, 'ERR_UPROBE_TOO_MANY_SITES')
  }
  await assertSemaphores(program, 0, 1)
})
