/**
 * Messages in the words of the command line, and that none of the library's options that have a flag is left in the words of the library.
 */
import assert from 'node:assert/strict'
import test from 'node:test'
import { inFlags } from '../../lib/cli/flag-names.js'
import { buildTarget } from '../support/build.js'
import { uprobe } from '../support/cli.js'
import { needs } from '../support/needs.js'
import { Target } from '../support/target.js'

for (const [message, said] of [
  ['Option sum: column 1: x is not known', 'Option --arg: column 1: x is not known'],
  [
    'Option strings names argument 4, and usdt:t:p has argument 0 only.',
    'Option --str names argument 4, and usdt:t:p has argument 0 only.',
  ],
  ['Option maxGroups: give an integer from 1 to 7.', 'Option maxGroups: give an integer from 1 to 7.'],
  ["Detach that tracer, or use counter: 'kernel', which shares it.", 'Detach that tracer, or use --counter kernel, which shares it.'],
  ['Give one on a local file system with leaseDir.', 'Give one on a local file system with --lease-dir.'],
  [
    'usdt:t:maxSites* stands for 9 sites, and maxSites is 1. Narrow the pattern, or raise maxSites.',
    'usdt:t:maxSites* stands for 9 sites, and --max-sites is 1. Narrow the pattern, or raise --max-sites.',
  ],
  ['The filter says: Option sum', 'The filter says: Option sum'],
] as const) {
  test(`says ${said}`, () => assert.equal(inFlags(message), said))
}

for (const [args, message] of [
  [['hist', 'usdt:t:begin', '--latency'], /^uprobe: Argument spec: the latency .*; otherwise give --to\. \(ERR_UPROBE_BAD_OPTION\)/],
  [['hist', 'usdt:t:begin', '--arg', 'comm'], /^uprobe: Option --arg: comm is a string/],
  [['hist', 'usdt:t:begin', '--arg', '7'], /^uprobe: Option --arg: column 1: .*has 1 argument/],
  [['hist', 'usdt:t:begin', '--to', 'usdt:t:end', '--match', 'arg1'], /^uprobe: Option --match: column 1: /],
  [
    ['hist', 'usdt:t:begin', '--to', 'usdt:t:end', '--match', 'threads'],
    /^uprobe: Option --match: column 1: "?threads"? is not known; there are thread, arg0, arg1, …, pid, tid and cpu \(/,
  ],
  [
    ['hist', 'usdt:t:begin', '--arg', 'size'],
    /^uprobe: Option --arg: column 1: size is not known; there are arg0, arg1, …, pid, tid and cpu \(/,
  ],
  [
    ['hist', 'uprobe:f', '--arg', 'size'],
    /^uprobe: Option --arg: column 1: size is not known; there are latency, arg0, arg1, …, pid, tid and cpu \(/,
  ],
  [['count', 'usdt:t:begin', '--by', 'arg1'], /^uprobe: Option --by: column 1: /],
  [
    ['count', 'usdt:t:begin', '--by', 'size'],
    /^uprobe: Option --by: column 1: size is not known; there are arg0, arg1, …, pid, tid, cpu, comm and str\(argN\) \(/,
  ],
  [
    ['count', 'uretprobe:f', '--by', 'size'],
    /^uprobe: Option --by: column 1: size is not known; there are retval, pid, tid, cpu, comm and str\(retval\) \(/,
  ],
  [['trace', 'usdt:t:begin', '--str', '7'], /^uprobe: Option --str names argument 7/],
  [['trace', 'usdt:t:begin', '--filter', 'arg0 = 1'], /^uprobe: Option --filter: column 6: = is not part of a filter; == compares/],
] as const) {
  test(`uprobe ${args.join(' ')} is refused in the words of the command line`, needs({ programs: ['gcc'] }), async (t) => {
    const target = await Target.start(t, buildTarget(t, 'latency'))
    const { code, stderr } = await uprobe(t, ...args, '-p', String(target.pid))
    assert.equal(code, 2)
    assert.match(stderr, message)
  })
}
