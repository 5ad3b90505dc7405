/**
 * What elf.ts measures: reads a file once, in a process of its own, and prints milliseconds, added megabytes and how much was found.
 *
 * It is plain JavaScript and loads what is built, as a user's program does; and it is a new process each time, since a second reading finds compiled code and a grown heap.
 */
const { ElfFile } = require('../dist/elf/elf-file.js')
const { listElf } = require('../dist/elf/list.js')
const { findFunctions } = require('../dist/elf/symbols.js')

async function main([path, what, pattern]) {
  const before = process.resourceUsage().maxRSS
  const start = performance.now()
  const elf = await ElfFile.open(path)
  const found = what === 'notes' ? await listElf(elf) : await findFunctions(elf, pattern)
  await elf.close()
  const ms = performance.now() - start
  const megabytes = ((process.resourceUsage().maxRSS - before) * 1024) / 1e6
  process.stdout.write(JSON.stringify({ ms, megabytes, found: found.length }))
}

void main(process.argv.slice(2))
