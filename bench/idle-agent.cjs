/**
 * The agent that idle.ts watches: attached to a probe, or with a tracer and no probe, it waits until its input ends.
 *
 * It is plain JavaScript and loads what is built, as a user's agent does: a loader that compiles TypeScript wakes up by itself several times a second.
 */
const { Tracer } = require('../dist/index.js')

async function main([spec, pid]) {
  const tracer = new Tracer()
  if (spec !== undefined) await tracer.attach(spec, { pid: Number(pid) })
  process.stdin.resume().once('end', () => void tracer.close())
  process.stdout.write('ready\n')
}

void main(process.argv.slice(2))
