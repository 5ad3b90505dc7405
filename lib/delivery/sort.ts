/**
 * Which records of a batch belong to which probe.
 *
 * Most batches have the hits of one probe only, and of one length: then there is nothing to look for. Else {@link sortRecords} runs for every hit, so it makes nothing for each but its place in a list, and
 * reads the batch as an array of 32-bit words.
 */

import type { BatchMemory } from '../capture/memory.js'
import { BATCH_HEAD, FIELD } from '../capture/record.js'
import { RecordOffsets } from '../capture/record-offsets.js'

/** From the head of a record in a batch to the number of its probe, in words. */
const ID_WORD = (BATCH_HEAD + FIELD.probeId) / 4

/** From the head of a record to that of the next, at least, in words. */
const RECORD_WORDS = (BATCH_HEAD + FIELD.operands) / 4

/** The probe that the first record of a batch names. */
export function firstProbeId(memory: BatchMemory): number {
  return memory.int32(4 * ID_WORD) >>> 0
}

/** Where records begin that all have one length: `distance` bytes from one to the next. */
export function alikeRecords(memory: BatchMemory, distance: number): RecordOffsets {
  return RecordOffsets.regular(BATCH_HEAD, distance, memory.byteLength / distance)
}

/**
 * Sorts records of any lengths, and of any probes.
 * @returns by the number of the probe: where its records begin, in the order in which the kernel wrote them
 */
export function sortRecords({ buffer }: BatchMemory): Map<number, RecordOffsets> {
  const words = new Uint32Array(buffer)
  const offsets = new Uint32Array(words.length / RECORD_WORDS)
  const firstId = words[ID_WORD]
  let records = 0
  let mixed = false
  for (let word = 0; word + ID_WORD < words.length; ) {
    if (words[word + ID_WORD] !== firstId) mixed = true
    offsets[records++] = 4 * word + BATCH_HEAD
    // The length is padded to 8 bytes.
    word += BATCH_HEAD / 4 + 2 * (((words[word] ?? 0) + 7) >>> 3)
  }
  if (firstId === undefined) return new Map()
  // Of longer records there are fewer, and what is not needed is not kept with them.
  const all = 2 * records < offsets.length ? offsets.slice(0, records) : offsets.subarray(0, records)
  return mixed ? sortById(words, all) : new Map([[firstId, RecordOffsets.listed(all)]])
}

function sortById(words: Uint32Array, all: Uint32Array): Map<number, RecordOffsets> {
  const byProbe = new Map<number, number[]>()
  let lastId = -1
  let lastOffsets: number[] = []
  for (const offset of all) {
    const id = words[(offset + FIELD.probeId) / 4] ?? 0
    if (id !== lastId) {
      lastId = id
      lastOffsets = byProbe.get(id) ?? []
      byProbe.set(id, lastOffsets)
    }
    lastOffsets.push(offset)
  }
  return new Map([...byProbe].map(([id, offsets]) => [id, RecordOffsets.listed(new Uint32Array(offsets))]))
}
