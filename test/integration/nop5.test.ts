/**
 * Probes on nops of five bytes. Some kernels replace such a nop by a call once it was hit, which can crash the program, its children, and the kernel: there the package must refuse it before anything
 * is registered. On the others such a probe is one like any other.
 *
 * It runs in guests only, since nothing but the package itself keeps the machine from harm.
 */
import assert from 'node:assert/strict'
import test from 'node:test'
import { buildTarget } from '../support/build.js'
import { HAS_SAFE_NOP5, REGISTRATIONS } from '../support/features.js'
import { leaseDirectory } from '../support/leases.js'
import { counterValue, fileBytes, instructionBytes } from '../support/memory.js'
import { gatedNote } from '../support/notes.js'
import { Target } from '../support/target.js'
import { detachComplete, newTracer, refused } from '../support/tracing.js'

const NOP5 = '0f1f440000'
const NOP5_BYTES = 5

const skip =
  process.arch !== 'x64'
    ? 'there are no such nops on this architecture'
    : process.env.UPROBE_TEST_GUEST !== '1' && 'it could crash the kernel, so it runs in a guest only (npm run test:guest -- --tests=nop5)'

for (const registration of REGISTRATIONS) {
  for (const counter of ['kernel', 'msb'] as const) {
    const name = HAS_SAFE_NOP5 ? 'is traced, and is as it was afterwards' : 'is refused, and nothing is written'
    test(`a nop of five bytes ${name} (${registration}, counter: ${counter})`, { skip }, async (t) => {
      const path = buildTarget(t, 'nop5')
      const { fileOffset, refCtrOffset } = gatedNote(path, 't:nop5')
      assert.equal(fileBytes(path, fileOffset, NOP5_BYTES), NOP5)
      const target = await Target.start(t, path)
      const options = { pid: target.pid, registration, counter }
      const tracer = newTracer(t, { leaseDir: leaseDirectory() })
      if (HAS_SAFE_NOP5) {
        const probe = await tracer.attach('usdt:t:nop5', options)
        assert.equal(await target.askNumber('nop5 100'), 100)
        await probe.pause()
        assert.equal(await target.askNumber('nop5 5'), 0)
        await probe.resume()
        assert.equal(await target.askNumber('nop5 3'), 3)
        await detachComplete(probe, 103)
      } else {
        await refused(tracer.attach('usdt:t:nop5', options), 'ERR_UPROBE_UNSAFE_NOP5')
        await refused(tracer.attach('usdt:t:nop5', { ...options, unsafe: true }), 'ERR_UPROBE_UNSAFE_NOP5')
      }
      assert.equal(instructionBytes(target.pid, path, fileOffset, NOP5_BYTES), NOP5)
      assert.equal(counterValue(target.pid, path, refCtrOffset), 0)
      assert.equal(await target.askNumber('nop5 5'), 0)
      assert.equal(await target.askNumber('fork 5'), 0)
    })
  }
}
