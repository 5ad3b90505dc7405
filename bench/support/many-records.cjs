/**
 * Makes capture programs write many records at each hit, so that the way from the ring to JavaScript can be measured apart from the trap, which limits a real program to about a
 * million hits a second. Nothing else changes: to the probe each record is a hit, and it is counted as one.
 *
 * The program that the library compiled begins with `r6 = r1`, and ends with `r0 = 0; exit`, where everything in it leads. A counter on the stack sends it back to its second
 * instruction until it has been round often enough (bounded loops: Linux 5.3). Its jumps are relative, so they do not mind an instruction more before them.
 */
const INSN_BYTES = 8
/** The last 8 of the 512 bytes of stack; the library uses them only for a filter. */
const COUNTER = -512
const [R0, R1, FRAME] = [0, 1, 10]

function insn(opcode, dst, src, offset, imm) {
  const bytes = new Uint8Array(INSN_BYTES)
  const view = new DataView(bytes.buffer)
  view.setUint8(0, opcode)
  view.setUint8(1, (src << 4) | dst)
  view.setInt16(2, offset, true)
  view.setInt32(4, imm, true)
  return bytes
}

function repeated(program, times) {
  const body = program.subarray(0, program.length - 2 * INSN_BYTES)
  const jumpAt = 1 + body.length / INSN_BYTES + 3
  return Buffer.concat([
    insn(0x7a, FRAME, 0, COUNTER, 0), // counter = 0
    body,
    insn(0x79, R1, FRAME, COUNTER, 0), // r1 = counter
    insn(0x07, R1, 0, 0, 1), // r1 += 1
    insn(0x7b, FRAME, R1, COUNTER, 0), // counter = r1
    insn(0xa5, R1, 0, 2 - (jumpAt + 1), times), // if r1 < times: to what follows `r6 = r1`
    insn(0xb7, R0, 0, 0, 0), // r0 = 0
    insn(0x95, 0, 0, 0, 0), // exit
  ])
}

/** From now on every program that this process loads writes `times` records a hit. */
function multiplyRecords(native, times) {
  const load = native.bpfProgLoad.bind(native)
  native.bpfProgLoad = (program) => load({ ...program, insns: repeated(program.insns, times) })
}

module.exports = { multiplyRecords }
