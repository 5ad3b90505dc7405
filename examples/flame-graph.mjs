// Collects the stacks by which a probe is reached, for some seconds, and prints them folded, as flame graph tools read them.
//
//     node examples/flame-graph.mjs PID SPEC [SECONDS] | flamegraph.pl > graph.svg
//
// `uprobe trace --folded` does the same.
import { setTimeout as delay } from 'node:timers/promises'
import { foldStack, Tracer } from 'uprobe'

// Who leaves early (`| head`) wants no more; what is attached goes with the process.
process.stdout.on('error', () => process.exit())
const [pid, spec, seconds = '5'] = process.argv.slice(2)
if (!/^\d+$/.test(pid) || spec === undefined) {
  console.error('usage: node flame-graph.mjs PID SPEC [SECONDS]')
  process.exit(2)
}
const tracer = new Tracer()
const probe = await tracer.attach(spec, { pid: Number(pid), stack: true })

// All hits of a stack have one and the same array, so counting them is a Map. The frames are asked for once, while the process is there.
const seen = new Map()
probe.on('hit', (hit) => {
  const known = seen.get(hit.stack)
  if (known !== undefined) known.count++
  else seen.set(hit.stack, { comm: hit.comm, frames: hit.symbolize(), count: 1 })
})
console.error(`attached to ${probe.sites.length} site(s)`)
await delay(Number(seconds) * 1000)
await tracer.close()

for (const { comm, frames, count } of seen.values()) console.log(`${foldStack(comm, await frames)} ${count}`)
console.error(probe.stats())
