/** `uprobe demo`: shows hits, counter and counts on a probe of the package itself. */
import type { Command } from 'commander'
import { DEMO_HITS, runDemo } from '../demo.js'
import { EXIT_CODES_HELP } from './failure.js'
import { HitFormat } from './hit-format.js'
import { Output } from './output.js'
import { displayCounts, summarize } from './summary.js'
import { jsonLine, plural } from './text.js'

const HELP = `
A child process loads the addon of this package, whose native code carries the probe usdt:uprobe:demo, and fires it ${DEMO_HITS} times.
The program reads the probe's semaphore, a 16-bit counter in its memory, to know whether anybody traces it.
${EXIT_CODES_HELP}`

/** Adds the command to `program`. */
export function addDemo(program: Command): void {
  program
    .command('demo')
    .summary('trace a probe of this package; needs nothing else')
    .description('Trace a probe of the package itself in a child process.')
    .option('--json', 'one JSON object a line; the counter goes to standard error')
    .addHelpText('after', HELP)
    .action(async ({ json = false }: { json?: boolean }) => {
      const output = new Output(process.stdout)
      const format = new HitFormat(json)
      const remark = (text: string): void => {
        if (json) process.stderr.write(`${text}\n`)
        else output.line(text)
      }
      const probe = await runDemo({
        counter: (when, value) => remark(`counter ${when}: ${value}`),
        attached: ({ sites }) => process.stderr.write(`attached ${plural(sites.length, 'site')} of usdt:uprobe:demo\n`),
        hit: (hit) => output.line(format.line(hit)),
      })
      const summary = summarize([probe], false)
      await output.lines(json ? [jsonLine({ summary })] : summary.map((entry) => displayCounts(entry)))
      output.check()
    })
}
