/**
 * `uprobe release`, where an agent does not give way: it is dead, or stopped.
 */
import assert from 'node:assert/strict'
import test from 'node:test'
import { attachIn, startAgent } from '../support/agent.js'
import { buildTarget } from '../support/build.js'
import { jsonOf, linesOf, succeeded, uprobe } from '../support/cli.js'
import { leaseDirectory } from '../support/leases.js'
import { needs } from '../support/needs.js'
import { Target } from '../support/target.js'
import { waitFor } from '../support/wait.js'

const GCC = needs({ programs: ['gcc'] })

test('the claim of an agent that is dead is not released, and repair is named, until the process is gone', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  const leaseDir = leaseDirectory()
  const agent = await startAgent(t, [], leaseDir)
  assert.equal(await attachIn(agent, 'usdt:t:gated', { pid: target.pid, counter: 'msb' }), 'attached')
  await agent.stop()
  const { code, stdout, stderr } = await uprobe(t, 'release', '--json', '--lease-dir', leaseDir)
  const reason = `the agent has left it; \`uprobe repair ${target.pid} --apply\` clears it`
  assert.deepEqual(jsonOf(stdout), [
    {
      pid: target.pid,
      path: target.program,
      provider: 't',
      name: 'gated',
      owner: { pid: agent.pid, comm: 'node', kind: 'lease' },
      released: false,
    },
  ])
  const message = `1 of 1 claims were not released: ${reason}.`
  assert.deepEqual([code, jsonOf(stderr)], [1, [{ error: { code: 'ERR_UPROBE_LEASE', message } }]])
  assert.equal(await target.ask('counters'), '32768 0 0 0')
  await target.end()
  assert.equal(succeeded(await uprobe(t, 'release', '--lease-dir', leaseDir)), '')
})

test('an agent that is stopped is named, is not waited for for ever, and gives way when it goes on', GCC, async (t) => {
  const target = await Target.start(t, buildTarget(t, 'usdt'))
  const leaseDir = leaseDirectory()
  const agent = await startAgent(t, [], leaseDir)
  assert.equal(await attachIn(agent, 'usdt:t:gated', { pid: target.pid, counter: 'msb' }), 'attached')
  agent.kill('SIGSTOP')
  const { code, stdout, stderr } = await uprobe(t, 'release', '--lease-dir', leaseDir)
  const refusal = 'the agent did not give way: no answer within 10 s. Ask again, or end it; what it leaves then is found by `uprobe repair`'
  assert.deepEqual(linesOf(stdout), [`${target.pid}  usdt:${target.program}:t:gated  node[${agent.pid}]  not released: ${refusal}`])
  assert.deepEqual(linesOf(stderr), [
    `waiting for node[${agent.pid}] to give way`,
    `uprobe: 1 of 1 claims were not released: ${refusal}. (ERR_UPROBE_LEASE)`,
  ])
  assert.equal(code, 1)
  agent.kill('SIGCONT')
  await waitFor('the agent to give way', async () => (await target.ask('counters')) === '0 0 0 0')
})
