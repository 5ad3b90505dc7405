/**
 * The agent that idle.ts watches: attached, or with the package loaded and not attached, it waits until its input ends.
 */
import { Tracer } from '../lib/index.js'

async function main([spec = '', pid = '']: readonly string[]): Promise<void> {
  const tracer = new Tracer()
  if (spec !== '') await tracer.attach(spec, { pid: Number(pid) })
  process.stdin.resume().once('end', () => void tracer.close())
  process.stdout.write('ready\n')
}

void main(process.argv.slice(2))
