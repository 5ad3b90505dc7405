/**
 * The agent that agent.ts and idle.ts watch: attached to a probe, or with a tracer and no probe, it waits until its input ends.
 *
 *     node agent.cjs [SPEC PID [CONSUMER [OPTIONS]]]    CONSUMER: batch, hit, iterator or none; OPTIONS of attach(), as JSON
 *
 * It says `ready` when everything is attached, and `first hit` at the first one. Commands: `hits` asks how many have arrived; `delay` for the delays of the event loop since the last time.
 *
 * It is plain JavaScript and loads what is built, as a user's agent does: a loader that compiles TypeScript wakes up by itself several times a second.
 */
const { monitorEventLoopDelay } = require('node:perf_hooks')
const { createInterface } = require('node:readline')
const { Tracer } = require('../dist/index.js')

const say = (line) => process.stdout.write(`${line}\n`)

/** What the consumers add up, as a consumer does something with what it gets. */
let sum = 0
let arrived = 0

function seen({ args }) {
  sum += args[0]
  if (arrived++ === 0) say('first hit')
}

const CONSUMERS = {
  none: () => undefined,
  hit: (probe) => probe.on('hit', seen),
  batch: (probe) =>
    probe.on('batch', (batch) => {
      for (const hit of batch) seen(hit)
    }),
  iterator: (probe) =>
    void (async () => {
      for await (const hit of probe) seen(hit)
    })(),
}

async function main([spec, pid, consumer = 'none', options = '{}']) {
  const tracer = new Tracer()
  if (spec !== undefined) CONSUMERS[consumer](await tracer.attach(spec, { pid: Number(pid), ...JSON.parse(options) }))
  let delays = null
  const commands = {
    hits: () => say(`hits ${arrived}`),
    // Only whoever asks pays for the timer behind it.
    delay: () => {
      if (delays !== null)
        say(JSON.stringify({ p50: delays.percentile(50) / 1e6, p99: delays.percentile(99) / 1e6, max: delays.max / 1e6, sum }))
      else say('{}')
      delays ??= monitorEventLoopDelay({ resolution: 1 })
      delays.enable()
      delays.reset()
    },
  }
  createInterface({ input: process.stdin })
    .on('line', (line) => commands[line]())
    .once('close', () => void tracer.close())
  say('ready')
}

void main(process.argv.slice(2))
