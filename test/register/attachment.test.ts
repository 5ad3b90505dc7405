/**
 * What an attachment holds in the kernel is given back whatever fails, and what it may not hold is refused each time it is asked for. No kernel is needed for that: descriptors are numbers here.
 */
import assert from 'node:assert/strict'
import { it } from 'node:test'
import { UprobeError } from '../../lib/errors.js'
import type { Native } from '../../lib/native.js'
import { Attachment, type AttachmentParts, type Part } from '../../lib/register/attachment.js'
import type { TargetProcess } from '../../lib/target/process.js'
import { refused } from '../support/tracing.js'

/** An attachment of parts in one process, and the descriptors that it has closed. */
function attachmentOf(parts: Array<Partial<Part>>, target: Partial<TargetProcess>): { attachment: Attachment; closed: number[] } {
  const closed: number[] = []
  const native: Partial<Native> = {
    closeFds: async (fds) => {
      closed.push(...fds)
    },
  }
  const whole = parts.map((part) => ({ target, sites: [], fds: [], ...part }))
  return { attachment: new Attachment({ native, parts: whole } as unknown as AttachmentParts), closed }
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
