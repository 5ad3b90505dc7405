/**
 * What attach.ts measures: attaches and detaches probes, one at a time, in a process of its own.
 *
 * It says `ready`. To `attach SPEC OPTIONS` and `detach` it answers with the milliseconds that it took and the longest that the event loop stood still meanwhile, or with the code of the error; to `idle MS` with
 * how long it stood still while there was nothing to do.
 *
 * It is plain JavaScript and loads what is built, as a user's agent does: a loader that compiles TypeScript brings a heap of its own, and a benchmark makes garbage, which would be collected while it attaches.
 */
const { monitorEventLoopDelay } = require('node:perf_hooks')
const { createInterface } = require('node:readline')
const { setTimeout: sleep } = require('node:timers/promises')
const { Tracer } = require('../dist/index.js')

/** A tick or two of the histogram of delays. */
const TICKS_MS = 3
/**
 * Before each, as in floor.c: some grace periods, since what was attached and detached before is given back in them, and what comes next would wait for those as well; and some part of a tick, with which they
 * end, since what always begins at the same part finds a millisecond more or less count for nothing, or for four.
 */
const QUIET_MS = 60
const ANY_MOMENT_MS = 12

/**
 * Runs `work`, with a histogram of its own: one that was disabled and enabled again takes what was between for a delay. A delay is seen at the tick that comes late, so there is one before the work, and one
 * after it.
 */
async function timed(work) {
  await sleep(QUIET_MS + Math.random() * ANY_MOMENT_MS)
  const delays = monitorEventLoopDelay({ resolution: 1 })
  delays.enable()
  await sleep(TICKS_MS)
  const before = performance.now()
  await work()
  const ms = performance.now() - before
  await sleep(TICKS_MS)
  delays.disable()
  return { ms, stallMs: delays.max / 1e6 }
}

async function main() {
  const tracer = new Tracer()
  let probe
  const commands = {
    attach: (spec, options) =>
      timed(async () => {
        probe = await tracer.attach(spec, JSON.parse(options))
      }),
    detach: () => timed(() => probe.detach()),
    idle: (ms) => timed(() => sleep(Number(ms))),
  }
  process.stdout.write('ready\n')
  for await (const line of createInterface({ input: process.stdin })) {
    const [command, ...rest] = line.split('\t')
    try {
      process.stdout.write(`${JSON.stringify(await commands[command](...rest))}\n`)
    } catch (error) {
      process.stdout.write(`${JSON.stringify({ error: error.code ?? String(error) })}\n`)
    }
  }
  await tracer.close()
}

void main()
