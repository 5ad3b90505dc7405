/**
 * Which records of a batch belong to which probe.
 *
 * This runs for every hit, so it makes nothing for each but its place in a list: the batch is read as an array of 32-bit words, and most batches have the hits of one probe in a row.
 */
import { BATCH_HEAD, FIELD } from '../capture/record.js'

/** From the head of a record in a batch to the number of its probe, in words. */
const ID_WORD = (BATCH_HEAD + FIELD.probeId) / 4

/**
 * Sorts a batch as the reader hands it out.
 * @returns by the number of the probe: where its records begin, in the order in which the kernel wrote them
 */
export function sortRecords(buffer: ArrayBuffer): Map<number, number[]> {
  const byProbe = new Map<number, number[]>()
  const words = new Uint32Array(buffer)
  let lastId = -1
  let lastOffsets: number[] = []
  for (let word = 0; word + ID_WORD < words.length; ) {
    const id = words[word + ID_WORD] ?? 0
    if (id !== lastId) {
      lastId = id
      lastOffsets = byProbe.get(id) ?? []
      byProbe.set(id, lastOffsets)
    }
    lastOffsets.push(4 * word + BATCH_HEAD)
    // The length is padded to 8 bytes.
    word += BATCH_HEAD / 4 + 2 * (((words[word] ?? 0) + 7) >>> 3)
  }
  return byProbe
}
