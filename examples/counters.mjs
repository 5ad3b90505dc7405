// The counter of a USDT probe, step by step: counted by the kernel, raised by a tool that forgot it, repaired, made negative, claimed, and left behind by an agent that was killed.
//
//     sudo node examples/counters.mjs
//
// Everything happens to a process of its own, the one that `uprobe demo` traces. docs/counters.md explains what is printed.
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { closeSync, mkdtempSync, openSync, rmSync, writeSync } from 'node:fs'
import { createRequire } from 'node:module'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { createInterface } from 'node:readline'
import { counters, repair, Tracer } from 'uprobe'

// Who leaves early (`| head`) is no reason to leave anything behind.
process.stdout.on('error', () => undefined)
const library = dirname(createRequire(import.meta.url).resolve('uprobe'))
const leaseDir = join(mkdtempSync(join(tmpdir(), 'uprobe-example-')), 'leases')
const target = spawn(process.execPath, [join(library, 'demo-child.js')], { stdio: ['pipe', 'pipe', 'inherit'] })
await once(createInterface({ input: target.stdout }), 'line')
const { pid } = target

async function show(step) {
  const [info] = (await counters(pid, { leaseDir })).filter(({ name }) => name === 'demo')
  const owners = info.owners.map(({ comm, kind }) => `${comm} (${kind})`).join(', ')
  console.log(
    `${step.padEnd(58)} value 0x${info.value.toString(16).padStart(4, '0')}  ${info.armedSites} armed  ${info.state.padEnd(14)} ${owners}`,
  )
  return info
}

/** What tools do that count by hand: they read, add, and write both bytes. */
function setByHand(address, value) {
  const mem = openSync(`/proc/${pid}/mem`, 'r+')
  writeSync(mem, Uint16Array.of(value), 0, 2, Number(address))
  closeSync(mem)
}

async function fix(step) {
  for (const { problem, before, after, note } of await repair({ pid, leaseDir, dryRun: false })) {
    console.log(`  repair: ${problem}, ${before} → ${after}: ${note}`)
  }
  await show(step)
}

try {
  const tracer = new Tracer({ leaseDir })
  const { address } = await show('nobody looks')
  const counted = await tracer.attach('usdt:uprobe:demo', { pid })
  const { value } = await show('a tracer, and the kernel counts for it')
  setByHand(address, value + 3)
  await show('some tool adds 3 by hand, and is killed')
  await fix('pinned, and what is above the armed sites subtracted')
  await counted.detach()
  await show('the tracer leaves')

  setByHand(address, 0x8000)
  await show('somebody sets bit 15, without a lease')
  const negative = await tracer.attach('usdt:uprobe:demo', { pid }).catch((error) => error)
  console.log(`  the kernel counts on no negative number: ${negative.code}`)
  await show('and has changed nothing')
  await fix('cleared')

  const claimed = await tracer.attach('usdt:uprobe:demo', { pid, counter: 'msb' })
  await show('claimed by its most significant bit')
  const refused = await new Tracer({ leaseDir }).attach('usdt:uprobe:demo', { pid }).catch((error) => error)
  console.log(`  counting with the kernel is refused meanwhile: ${refused.code}`)
  await claimed.pause()
  await show('paused: one store')
  await claimed.resume()
  await show('resumed: another one')
  await tracer.close()
  await show('given back')

  const agent = spawn(
    process.execPath,
    [
      '--input-type=module',
      '-e',
      `
    const { Tracer } = await import(${JSON.stringify(import.meta.resolve('uprobe'))})
    await new Tracer({ leaseDir: ${JSON.stringify(leaseDir)} }).attach('usdt:uprobe:demo', { pid: ${pid}, counter: 'msb' })
    console.log('claimed')
    setInterval(() => {}, 1000)
  `,
    ],
    { stdio: ['ignore', 'pipe', 'inherit'] },
  )
  await once(agent.stdout, 'data')
  await show('claimed by another agent')
  agent.kill('SIGKILL')
  await once(agent, 'exit')
  await show('which is killed')
  await fix('found by its lease, and cleared')
} finally {
  target.kill()
  rmSync(dirname(leaseDir), { recursive: true })
}
