/**
 * What the kernel under test can do, where tests differ by it.
 *
 * It is said by whoever starts the tests, not asked of the code under test: a test of the choice between two ways must know which one is right. On a machine
 * for development and in continuous integration everything is there; test/guest/run.mjs names what an old kernel lacks.
 */
const lacking = new Set((process.env.UPROBE_TEST_LACKS ?? '').split(',').filter(Boolean))

/** Whether the kernel has a uprobe_multi link with a right process filter (6.10). */
export const HAS_MULTI = !lacking.has('multi')

/** Whether programs on uprobes may sleep and fetch memory with bpf_copy_from_user: seen on 6.12, refused by 6.1. */
export const HAS_SLEEPABLE = !lacking.has('sleepable')

/** Whether probes may be on nops of five bytes: from 6.18 on, until it was repaired, the kernel replaces them in ways that harm the program. */
export const HAS_SAFE_NOP5 = !lacking.has('nop5')

/** Whether the kernel tells which thread of a process is the last to exit (6.16). */
export const HAS_LAST_THREAD = !lacking.has('last-thread')

/** The ways to register that can be forced here. */
export const REGISTRATIONS: ReadonlyArray<'perf' | 'multi'> = HAS_MULTI ? ['perf', 'multi'] : ['perf']
