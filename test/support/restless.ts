/**
 * An agent that does nothing but register and close probes, again and again, for tests that kill it in the middle: it says "ready", and works until it
 * dies. Straight on the addon, so that it is nearly always in the kernel.
 */
import { join } from 'node:path'
import { countingProgram, load, MAP_PERCPU_ARRAY, native, uprobePmu } from '../native/kernel.js'
import { Target } from './target.js'
import type { Cleanup } from './temp.js'

/** What it registers. */
export interface RestlessPlan {
  readonly path: string
  readonly pid: number
  /** `perf`: an event a site; `multi`: one link. */
  readonly registration: 'perf' | 'multi'
  readonly firstOffset: bigint
  readonly instructionBytes: number
  readonly sites: number
  readonly refCtrOffset: bigint
}

/** BPF_TRACE_UPROBE_MULTI */
const UPROBE_MULTI = 48

/** Starts one. */
export function startRestless(t: Cleanup, plan: RestlessPlan): Promise<Target> {
  const argument = JSON.stringify(plan, (_, value: unknown) => (typeof value === 'bigint' ? String(value) : value))
  const args = [...(__filename.endsWith('.ts') ? ['--import', 'tsx'] : []), __filename, argument]
  return Target.start(t, process.execPath, { args, cwd: join(__dirname, '..', '..') })
}

async function main(argument: string): Promise<never> {
  const { path, pid, registration, sites, instructionBytes, ...offsets } = JSON.parse(argument) as RestlessPlan
  const refCtrOffset = BigInt(offsets.refCtrOffset)
  const fileOffsets = Array.from({ length: sites }, (_, site) => BigInt(offsets.firstOffset) + BigInt(site * instructionBytes))
  const mapFd = native.bpfMapCreate({ type: MAP_PERCPU_ARRAY, keyBytes: 4, valueBytes: 8, maxEntries: 1, name: 'restless' })
  const progFd = await load(countingProgram(mapFd), registration === 'multi' ? UPROBE_MULTI : 0)
  const open: Record<RestlessPlan['registration'], () => Promise<number[]>> = {
    perf: () =>
      Promise.all(
        fileOffsets.map(async (fileOffset) => {
          const options = { type: uprobePmu(), path, fileOffset, refCtrOffset: Number(refCtrOffset), retprobe: false, tid: pid }
          const perfFd = await native.perfEventOpenUprobe(options)
          await native.perfEventSetBpf(perfFd, progFd)
          return perfFd
        }),
      ),
    multi: async () => {
      const refCtrOffsets = new BigUint64Array(sites).fill(refCtrOffset)
      const cookies = new BigUint64Array(sites)
      const link = { progFd, path, fileOffsets: BigUint64Array.from(fileOffsets), refCtrOffsets, cookies, retprobe: false, pid }
      return [await native.bpfLinkCreateUprobeMulti(link)]
    },
  }
  console.log('ready')
  for (;;) await native.closeFds(await open[registration]())
}

if (require.main === module) void main(process.argv[2] ?? '')
