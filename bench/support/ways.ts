/**
 * The ways of tracing whose cost at a hit is compared, in groups that do the same: this package, plain C (floor.c), and whichever of perf, bpftrace and bcc is installed.
 *
 * Each way has probes of the target for itself, so that all can be attached at once. A way that prints or hands every hit to another process is given fewer hits.
 */
import type { Tracer } from '../../lib/index.js'
import { type BccMode, type FloorMode, findBcc, holdBcc, holdBpftrace, holdFloor, holdPerf, isInstalled, type Place } from './others.js'
import { holdAggregating, holdCounting, holdDelivering, type Tracing } from './ours.js'
import type { Bar } from './report.js'
import type { Workshop } from './workshop.js'

/** A way to trace. */
export interface Way {
  readonly name: string
  readonly by: Bar['by']
  /** Part of the whole burst that it gets. */
  readonly share?: number
  start(place: Place): Promise<Tracing>
}

/** Ways that do the same. */
export interface Group {
  readonly title: string
  /** Kind of probe in the target: ints, text, pair or stack. */
  readonly probes: 'ints' | 'text' | 'pair' | 'stack'
  /** Greatest ratio to `perf stat` that this project allows itself. */
  readonly goal?: number
  readonly ways: readonly Way[]
}

/** What all ratios refer to: `perf stat`, or the bare perf event where perf is not installed. */
export function referenceName(): string {
  return isInstalled('perf') ? '`perf stat`' : BARE
}

const BARE = 'a bare perf event (C)'

/** The groups, and why some tracer is not among them. */
export function groupsOf(workshop: Workshop, tracer: Tracer): { groups: Group[]; missing: string[] } {
  const program = workshop.build('floor')
  const bcc = findBcc()
  const has = { perf: isInstalled('perf'), bpftrace: isInstalled('bpftrace') }
  const missing = [
    ...(has.perf ? [] : ['perf is not installed']),
    ...(has.bpftrace ? [] : ['bpftrace is not installed']),
    ...('missing' in bcc ? [bcc.missing] : []),
  ]
  const only = (condition: boolean, ...ways: Way[]): Way[] => (condition ? ways : [])
  const inC = (name: string, mode: FloorMode): Way => ({ name, by: 'C', start: (place) => holdFloor(workshop, program, mode, place) })
  const perf = (name: string, command: string[], reads = 0, share = 1): Way[] =>
    only(has.perf, { name, by: 'peer', share, start: (place) => holdPerf(workshop, command, place, reads) })
  const bpftrace = (name: string, action: string, second?: string, share = 1): Way[] =>
    only(has.bpftrace, { name, by: 'peer', share, start: (place) => holdBpftrace(workshop, place, action, second) })
  const withBcc = (name: string, mode: BccMode, share = 1): Way[] =>
    'missing' in bcc ? [] : [{ name, by: 'peer', share, start: (place) => holdBcc(workshop, bcc.headers, mode, place) }]
  const ours = (name: string, start: Way['start']): Way => ({ name, by: 'uprobe', start })

  const groups: Group[] = [
    {
      title: 'Counting',
      probes: 'ints',
      goal: 0.85,
      ways: [
        ours('uprobe', (place) => holdCounting(tracer, place)),
        inC('a BPF program that counts (C)', 'tally'),
        inC('a BPF program that returns (C)', 'empty'),
        inC(BARE, 'count'),
        ...perf('`perf stat`', ['stat']),
        ...bpftrace('bpftrace, `count()`', '{ @hits = count() }'),
        ...withBcc('bcc, counting', 'tally'),
      ],
    },
    {
      title: 'A filter that rejects every hit',
      probes: 'ints',
      goal: 0.85,
      ways: [
        ours('uprobe, `arg0 < 0`', (place) => holdCounting(tracer, place, { filter: 'arg0 < 0' })),
        inC('the same in C', 'filter'),
        ...perf('`perf stat --filter`', ['stat', '--filter', 'a < 0'], 1),
        ...bpftrace('bpftrace, `/arg0 < 0/`', '/(int32)arg0 < 0/ { @hits = count() }'),
        ...withBcc('bcc, `if (a >= 0) return`', 'filter'),
      ],
    },
    {
      title: 'Two arguments',
      probes: 'ints',
      goal: 1.12,
      ways: [
        ours('uprobe, to JavaScript', (place) => holdDelivering(tracer, place)),
        inC('a ring, nobody woken (C)', 'ints'),
        ...perf('`perf record`', ['record', '-q'], 2, 0.25),
        ...bpftrace('bpftrace, `printf`', '{ printf("%d %d\\n", arg0, arg1) }', undefined, 0.1),
        ...withBcc('bcc, a ring to Python', 'ints', 0.1),
      ],
    },
    {
      title: 'Two arguments and a string of 64 bytes',
      probes: 'text',
      goal: 1.25,
      ways: [
        ours('uprobe, to JavaScript', (place) => holdDelivering(tracer, place, { strings: [2] })),
        inC('a ring, nobody woken (C)', 'text'),
        ...perf('`perf record`', ['record', '-q'], 3, 0.25),
        ...bpftrace('bpftrace, `printf`', '{ printf("%d %d %s\\n", arg0, arg1, str(arg2)) }', undefined, 0.1),
        ...withBcc('bcc, a ring to Python', 'text', 0.1),
      ],
    },
    {
      title: 'A histogram of an argument',
      probes: 'ints',
      goal: 1.05,
      ways: [
        ours('uprobe, `histogram`', (place) => holdAggregating(tracer, place, { histogram: 'arg0' })),
        inC('the same in C', 'histogram'),
        ...bpftrace('bpftrace, `hist(arg0)`', '{ @values = hist(arg0) }'),
        ...withBcc('bcc, `BPF_HISTOGRAM`', 'histogram'),
      ],
    },
    {
      title: 'Latency between two sites, a hit of the pair',
      probes: 'pair',
      ways: [
        ours('uprobe, `{ from, to }`', (place) => holdAggregating(tracer, place, { histogram: 'latency' })),
        inC('the same in C', 'pair'),
        ...bpftrace(
          'bpftrace, `hist(nsecs - @start[tid])`',
          '{ @start[tid] = nsecs }',
          '/@start[tid]/ { @values = hist(nsecs - @start[tid]); delete(@start[tid]) }',
        ),
        ...withBcc('bcc, hash and histogram', 'pair'),
      ],
    },
    {
      title: 'A user stack of ten frames',
      probes: 'stack',
      ways: [
        ours('uprobe, to JavaScript', (place) => holdDelivering(tracer, place, { stack: true })),
        inC('`bpf_get_stackid` (C)', 'stack'),
        ...perf('`perf record --user-callchains`', ['record', '-q', '-g', '--user-callchains'], 0, 0.25),
        ...bpftrace('bpftrace, `@[ustack] = count()`', '{ @stacks[ustack] = count() }'),
        ...withBcc('bcc, `BPF_STACK_TRACE`', 'stack'),
      ],
    },
  ]
  return { groups, missing }
}
