/**
 * The program that `uprobe demo` traces: a Node process that has loaded the package's own addon, which carries `usdt:uprobe:demo`.
 *
 * It takes one command a line and answers each with one line: `counter` with the value of the probe's semaphore, `fire N` with how many of N
 * executions found the semaphore up.
 */
import { createInterface } from 'node:readline'
import { setTimeout as sleep } from 'node:timers/promises'
import { loadNative } from './native.js'

/** Apart enough to watch, in milliseconds. */
const PAUSE_MS = 25

async function main(): Promise<void> {
  const native = loadNative()
  console.log('ready')
  for await (const line of createInterface({ input: process.stdin })) {
    const [command, count = '0'] = line.split(' ')
    if (command === 'counter') {
      console.log(native.demoSemaphore())
    } else if (command === 'fire') {
      let seen = 0
      for (let index = 0; index < Number(count); index++) {
        // The 64-bit argument goes beyond what a JavaScript number holds exactly.
        if (native.fireDemo(index, 2n ** 60n + BigInt(index), `hit number ${index}`)) seen++
        await sleep(PAUSE_MS)
      }
      console.log(seen)
    }
  }
}

main().catch((error: unknown) => {
  console.error(error instanceof Error ? error.message : error)
  process.exitCode = 1
})
