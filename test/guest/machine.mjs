/**
 * A virtual machine: qemu's software emulation, so that it also works where there is no hardware for it.
 *
 * Its two processors take turns on one thread of qemu. With a thread each, code that one processor changes is at times executed by the other as it was: kernels die of a
 * breakpoint in their own code that was removed a moment ago (they patch themselves whenever the first perf event comes or the last one goes), and Node of compiled JavaScript.
 */
import { spawn } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { createInterface } from 'node:readline'

const MACHINES = {
  // Without cx16: qemu 7.2 at times leaves garbage in the flags after a cmpxchg16b without lock prefix, with which kernels allocate memory (mm/slub.c), and the kernel dies of it.
  amd64: { program: 'qemu-system-x86_64', package: 'qemu-system-x86', options: ['-cpu', 'max,-cx16'], console: 'ttyS0' },
  // No processor with all there is: on max, qemu 7.2 lets Node's compiled JavaScript run with another function's data now and then, and Node dies of it (three boots of seven that
  // compile a lot; never on neoverse-n1 and cortex-a72, which lack, among others, the invalidation of ranges of addresses and 52-bit addresses with pages of 4 KiB).
  arm64: { program: 'qemu-system-aarch64', package: 'qemu-system-arm', options: ['-M', 'virt', '-cpu', 'neoverse-n1'], console: 'ttyAMA0' },
}
const MEMORY_MIB = 1536
/** Two, since much of what is tested is about what happens at the same time. */
const PROCESSORS = 2
const PARAMETERS = [
  'panic=-1',
  'quiet',
  // Tests look for leaked uprobes in the log, which others fill with refusals.
  'log_buf_len=16M',
  // Newer kernels let only a debugger write code through /proc/PID/mem, and a test breaks a target that way.
  'proc_mem.force_override=always',
  // Closing a probe waits for the kernel's grace periods, which are long where processors are slow.
  'rcupdate.rcu_expedited=1',
]
/** Colours and cursor movements of the firmware. */
const ESCAPES = new RegExp(`${String.fromCharCode(27)}(\\[[\\d;?]*[a-zA-Z]|c)`, 'g')

/**
 * Boots a guest.
 * @param settings - variables for the environment of its first process
 * @param limitMs - it is killed after this time
 * @param print - is given each line it prints
 * @returns how many tests passed and failed as the guest says itself, what failed, and why it does not count as passed, if so
 */
export function boot({ architecture, kernel, image, settings, limitMs, print }) {
  const machine = MACHINES[architecture]
  const variables = Object.entries(settings).map(([name, value]) => `${name}=${value}`)
  const commandLine = [`console=${machine.console}`, ...PARAMETERS, ...variables].join(' ')
  const args = [
    ...machine.options,
    ...['-accel', 'tcg,thread=single', '-m', String(MEMORY_MIB), '-smp', String(PROCESSORS)],
    ...['-nographic', '-no-reboot', '-nodefaults', '-serial', 'stdio'],
    ...['-kernel', kernel, '-initrd', image, '-append', commandLine],
  ]
  return new Promise((resolve, reject) => {
    const child = spawn(machine.program, args, { stdio: ['ignore', 'pipe', 'inherit'] })
    child.once('error', (error) => reject(new Error(`${machine.program} cannot be started (Debian: ${machine.package}): ${error.message}`)))
    let late = false
    const limit = setTimeout(() => {
      late = true
      child.kill('SIGKILL')
    }, limitMs)
    const result = { passed: 0, failed: 0, skipped: 0, failures: [], status: null, processorSeconds: 0 }
    const meter = setInterval(() => {
      result.processorSeconds = processorSeconds(child.pid) ?? result.processorSeconds
    }, 1000)
    createInterface({ input: child.stdout }).on('line', (raw) => {
      const line = raw.replace(ESCAPES, '').trimEnd()
      const counts = /^guest: (\d+) passed, (\d+) failed, (\d+) skipped$/.exec(line)
      if (counts !== null) [result.passed, result.failed, result.skipped] = counts.slice(1).map(Number)
      const failure = /^guest: failed: (.*)$/.exec(line)?.[1]
      if (failure !== undefined) result.failures.push(failure)
      result.status = /^guest: status (\d+)$/.exec(line)?.[1] ?? result.status
      if (line !== '') print(line)
    })
    child.once('close', () => {
      clearTimeout(limit)
      clearInterval(meter)
      const { passed, failed, status } = result
      let wrong = null
      if (late) wrong = `not done after ${limitMs / 60_000} minutes`
      else if (status === null) wrong = 'it ended before its tests did'
      else if (failed > 0) wrong = `${failed} tests failed`
      else if (status !== '0') wrong = `its tests ended with status ${status}`
      else if (passed === 0) wrong = 'no test ran'
      resolve({ ...result, wrong })
    })
  })
}

/** What a process has used so far; the wall clock says little on a machine that does other things too. */
function processorSeconds(pid) {
  try {
    const fields = readFileSync(`/proc/${pid}/stat`, 'utf8')
      .replace(/^.*\) /s, '')
      .split(' ')
    // utime and stime (proc_pid_stat(5)), in ticks of 10 ms.
    return (Number(fields[11]) + Number(fields[12])) / 100
  } catch {
    // It has ended.
    return null
  }
}
