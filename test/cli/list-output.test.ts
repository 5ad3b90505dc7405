/**
 * `uprobe list` and whoever reads what it prints: slow, gone, or full.
 *
 * Not for guests: the readers are written in Python.
 */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import test, { type TestContext } from 'node:test'
import { cliProgram } from '../support/cli.js'
import { LAYOUT, usdtFile } from '../support/elf-builder.js'
import { needs } from '../support/needs.js'
import { tempDirectory } from '../support/temp.js'

const PYTHON = needs({ programs: ['python3'] })

/** Some of their bytes are no ASCII, so that there are more of them than characters. */
const NAMES = Array.from({ length: 5000 }, (_, index) => `größe${index}`)

function fileWithMany(t: TestContext): string {
  const path = join(tempDirectory(t), 'program')
  const notes = NAMES.map((name) => ({
    provider: 'p',
    name,
    args: '-4@%edi',
    pc: LAYOUT.text.address + 0x10,
    base: LAYOUT.base.address,
    semaphore: 0,
  }))
  writeFileSync(path, usdtFile({ bits: 64, littleEndian: true }, 0, [notes]).bytes)
  return path
}

/** Runs the listing with a standard output that `reader`, in Python, makes and reads; prints what came, and then the exit code. */
function listInto(path: string, reader: string): string {
  return execFileSync('python3', ['-c', reader, process.execPath, cliProgram(), 'list', path], { encoding: 'utf8', maxBuffer: 1 << 26 })
}

test('waits for a slow reader whose pipe does not block, and gives it every byte', PYTHON, (t) => {
  const path = fileWithMany(t)
  // Both ends are small, so that the pipe is full most of the time; a read now and then.
  const reader = `
import fcntl, os, subprocess, sys, time
r, w = os.pipe()
fcntl.fcntl(w, fcntl.F_SETPIPE_SZ, 4096)
os.set_blocking(w, False)
child = subprocess.Popen(sys.argv[1:], stdout=w)
os.close(w)
while True:
    piece = os.read(r, 30001)
    if not piece: break
    sys.stdout.buffer.write(piece)
    if child.poll() is None: time.sleep(0.0001)
sys.stdout.flush()
sys.exit(child.wait())
`
  const lines = listInto(path, reader).trimEnd().split('\n')
  assert.deepEqual(
    lines.map((line) => /^usdt:.*:p:(\S+) /.exec(line)?.[1]),
    NAMES,
  )
})

test('ends quietly with 0 when its reader leaves', PYTHON, (t) => {
  const path = fileWithMany(t)
  const reader = `
import os, subprocess, sys
r, w = os.pipe()
child = subprocess.Popen(sys.argv[1:], stdout=w, stderr=subprocess.PIPE)
os.close(w)
os.read(r, 10)
os.close(r)
said = child.communicate()[1]
print(child.returncode, said)
`
  assert.equal(listInto(path, reader), "0 b''\n")
})

test('says that a disk is full', PYTHON, (t) => {
  const path = fileWithMany(t)
  const reader = `
import subprocess, sys
child = subprocess.run(sys.argv[1:], stdout=open('/dev/full', 'w'), stderr=subprocess.PIPE)
print(child.returncode, child.stderr.decode().strip())
`
  assert.match(listInto(path, reader), /^1 uprobe: ENOSPC: .* \(ENOSPC\)\n$/)
})
