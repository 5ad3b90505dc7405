// How long large allocations take in a child process: a histogram made in the kernel, read every half second without losing a call.
//
//     node examples/latency.mjs [PID]
import { spawn } from 'node:child_process'
import { readFile } from 'node:fs/promises'
import { setTimeout as delay } from 'node:timers/promises'
import { bucketBounds, Tracer } from 'uprobe'

// Who leaves early (`| head`) is no reason to leave the child behind.
process.stdout.on('error', () => undefined)
if (!/^\d+$/.test(process.argv[2] ?? '1')) {
  console.error('usage: node latency.mjs [PID]')
  process.exit(2)
}
const busy = 'const end = Date.now() + 20_000; while (Date.now() < end) Buffer.allocUnsafeSlow(5000).fill(1)'
const child = process.argv[2] === undefined ? spawn(process.execPath, ['-e', busy]) : null
const pid = child === null ? Number(process.argv[2]) : await new Promise((resolve) => child.once('spawn', () => resolve(child.pid)))
while (child !== null && !(await mapsLibc(pid))) await delay(10)

const tracer = new Tracer()
const calls = await tracer.aggregate('uprobe:malloc', { pid, histogram: 'latency', max: 'latency', filter: 'arg0 >= 4096' })
let seen = 0
for (let round = 1; round <= 3; round++) {
  await delay(500)
  const { groups } = await calls.snapshot({ reset: true })
  const { count, max, histogram } = groups[0]
  seen += count
  console.log(`round ${round}: ${count} calls, the longest took ${max} ns`)
  histogram.positive.bucketCounts.forEach((calls, index) => {
    const [above, upTo] = bucketBounds(histogram.scale, histogram.positive.offset + index)
    if (calls > 0) console.log(`  above ${above} ns, up to ${upTo} ns: ${calls}`)
  })
}
await calls.detach()
const { groups } = await calls.snapshot()
const { hits, filtered, aggregated, lost, unfinished } = calls.stats()
console.log(`seen ${seen + groups[0].count}`)
console.log(`hits ${hits} = filtered ${filtered} + aggregated ${aggregated} + lost ${lost} + unfinished ${unfinished}`)
await tracer.close()
child?.kill()

async function mapsLibc(pid) {
  return (await readFile(`/proc/${pid}/maps`, 'utf8')).includes('libc.so')
}
