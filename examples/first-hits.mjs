// Attaches to a USDT probe of a running process and prints its first ten hits.
//
//     node examples/first-hits.mjs PID [SPEC]
//
// SPEC defaults to the garbage collector of a running CPython: usdt:python:gc__start
import pino from 'pino'
import { Tracer } from 'uprobe'

// Who leaves early (`| head`) wants no more; what is attached goes with the process.
process.stdout.on('error', () => process.exit())
const [pid, spec = 'usdt:python:gc__start'] = process.argv.slice(2)
if (!/^\d+$/.test(pid)) {
  console.error('usage: node first-hits.mjs PID [SPEC]')
  process.exit(2)
}
const tracer = new Tracer({ logger: pino({ level: 'warn' }) })
const probe = await tracer.attach(spec, { pid: Number(pid) })
let left = 10
for await (const hit of probe) {
  console.log(hit.timestamp, hit.pid, hit.tid, hit.probe, hit.args)
  if (--left === 0) break // leaving the loop detaches the probe
}
console.log(probe.stats())
await tracer.close()
