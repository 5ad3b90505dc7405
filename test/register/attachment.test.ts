/**
 * What an attachment holds in the kernel is given back whatever fails, and what it may not hold is refused each time it is asked for. No kernel is needed for that: descriptors are numbers here.
 */
import assert from 'node:assert/strict'
import { it } from 'node:test'
import { UprobeError } from '../../lib/errors.js'
import type { Native } from '../../lib/native.js'
import { SiteWork } from '../../lib/progress.js'
import { Attachment, type AttachmentParts, type Part } from '../../lib/register/attachment.js'
import type { Site } from '../../lib/register/site.js'
import type { TargetProcess } from '../../lib/target/process.js'
import { refused } from '../support/tracing.js'

/** An attachment of parts in one process, the descriptors that it has opened and closed, and what it has warned of. */
function attachmentOf(
  parts: Array<Partial<Part>>,
  target: Partial<TargetProcess>,
): { attachment: Attachment; opened: number[]; closed: number[]; warnings: string[] } {
  const opened: number[] = []
  const closed: number[] = []
  const warnings: string[] = []
  const native: Partial<Native> = {
    perfEventOpenUprobe: async () => opened.push(100 + opened.length),
    perfEventSetBpf: async () => undefined,
    closeFds: async (fds) => {
      closed.push(...fds)
    },
  }
  const attachment = new Attachment({
    native,
    pmu: { type: 8, refCtrOffset: true },
    programs: { perf: async () => 7 },
    parts: parts.map((part) => ({ target, file: { path: '/f' }, sites: [], fds: [], ...part })),
    onWarning: (warning: string) => warnings.push(warning),
  } as unknown as AttachmentParts)
  return { attachment, opened, closed, warnings }
}

/** Sites without a counter. */
function sitesOf(count: number): Part['sites'] {
  return Array.from({ length: count }, (_, slot) => ({ slot, refCtrOffset: null }) as Site)
}

/** A process whose leader thread has exited, so that no link finds its memory. */
const LEADERLESS: Partial<TargetProcess> = {
  pid: 1,
  tid: 2,
  leaderExited: true,
  isAlive: () => true,
  refreshThread: () => true,
  programMapped: async () => undefined,
}

it('closes everything also when it cannot be learned whether a process is in the middle of an exec', async () => {
  let asked = 0
  const { attachment, closed } = attachmentOf(
    [
      { via: 'multi', fds: [3] },
      { via: 'perf', fds: [4, 5] },
    ],
    {
      programMapped: async () => {
        asked++
        throw new UprobeError('ERR_UPROBE_LIMIT', 'no descriptor is left')
      },
    },
  )
  await refused(attachment.unregister(), 'ERR_UPROBE_LIMIT')
  assert.deepEqual([closed, asked], [[3, 4, 5], 1])
  assert.deepEqual(
    attachment.parts.flatMap(({ fds }) => fds),
    [],
  )
})

it('refuses too many perf events each time, where the leader thread has exited', async () => {
  const { attachment, opened } = attachmentOf([{ via: 'multi', sites: sitesOf(2000) }], LEADERLESS)
  const { signal } = new AbortController()
  for (const _attempt of [1, 2]) await refused(attachment.register(SiteWork.quietly(signal)), 'ERR_UPROBE_TOO_MANY_SITES')
  assert.deepEqual(opened, [])
})

it('says what many perf events cost, once, where the leader thread has exited', async () => {
  const { attachment, opened, warnings } = attachmentOf([{ via: 'multi', sites: sitesOf(100) }], LEADERLESS)
  const { signal } = new AbortController()
  for (const _attempt of [1, 2]) {
    assert.deepEqual(await attachment.register(SiteWork.quietly(signal)), [])
    await attachment.unregister()
  }
  assert.equal(opened.length, 200)
  assert.equal(warnings.length, 1)
  assert.match(warnings.join(), /^100 sites need a perf event each/)
})

it('closes what could not be closed before it registers it again', async () => {
  const { attachment, opened, closed } = attachmentOf([{ via: 'perf', sites: sitesOf(1), fds: [3] }], LEADERLESS)
  await attachment.registerAgain(new AbortController().signal)
  assert.deepEqual([closed, opened.length, attachment.parts.map(({ fds }) => fds)], [[3], 1, [[1]]])
})
