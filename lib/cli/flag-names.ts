/**
 * What the library's messages call options, as the command line calls them.
 *
 * The library knows nothing of flags, and its messages name its own options: `Option sum: …`, `use counter: 'kernel'`. Every message of a failure or a warning goes through here, so that what it tells to do can be typed.
 */

/** By the name in the library. What has no flag keeps its name. */
const FLAGS: ReadonlyMap<string, string> = new Map([
  ['pid', 'Option --pid'],
  ['strings', 'Option --str'],
  ['counter', 'Option --counter'],
  ['filter', 'Option --filter'],
  ['stack', 'Option --stack'],
  ['by', 'Option --by'],
  ['match', 'Option --match'],
  ['scale', 'Option --scale'],
  ['leaseDir', 'Option --lease-dir'],
  ['spec', 'Argument spec'],
  // `uprobe hist` asks for all of them of one argument.
  ...['sum', 'min', 'max', 'histogram'].map((name) => [name, 'Option --arg'] as const),
])

/** The message in the words of the command line. */
export function inFlags(message: string): string {
  return (
    message
      .replace(/^Option (\w+)/, (all, name: string) => FLAGS.get(name) ?? all)
      .replace(/counter: '(kernel|msb)'/g, '--counter $1')
      .replace(/\bwith leaseDir\b/g, 'with --lease-dir')
      .replace(/( sites, and |, or raise )maxSites\b/g, '$1--max-sites')
      .replace('give two probes, { from, to }', 'give --to')
      .replace('Give `pid`, or', 'Give --pid, or')
      // There is no such flag: who overrides a refusal should have a program of their own to answer for it.
      .replace('or pass unsafe: true', 'or use the library with unsafe: true')
  )
}
