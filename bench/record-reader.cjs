/**
 * What ring-path.ts measures: takes the records of one probe in one way, in a process of its own.
 *
 *     node record-reader.cjs WAY SPEC PID RECORDS RECORDS_A_HIT RING_BYTES
 *
 * It says `ready` when it is attached. `begin` waits for the next RECORDS of them; it answers `begun`, and then with the nanoseconds that the main thread and the reading thread have run for them. When its
 * input ends it says how many records were lost. `scale` answers with what this machine's JavaScript takes at the least.
 *
 * It is plain JavaScript and loads what is built, as a user's agent does: a loader that compiles TypeScript brings a heap of its own, which V8 goes through at each of its collections.
 */
const { readdirSync, readFileSync } = require('node:fs')
const { createInterface } = require('node:readline')
const { Tracer } = require('../dist/index.js')
const { loadNative } = require('../dist/native.js')
const { multiplyRecords } = require('./support/many-records.cjs')

const TASKS = '/proc/self/task'
const STRING = { strings: [2], stringLimit: 64 }

/** What the consumers add up, so that no compiler finds that nobody wants it. Not at each hit: V8 makes an object of such a variable each time that it is written. */
let sum = 0

/** Options of attach(), and what is done with the probe for ever; `seen` is told of the hits. */
const WAYS = {
  'batch numbers': {
    consume(probe, seen) {
      probe.on('batch', (batch) => {
        let total = 0
        for (const { args } of batch) total += args[0] + args[1]
        sum += total
        seen(batch.length)
      })
    },
  },
  'batch string': {
    options: STRING,
    consume(probe, seen) {
      probe.on('batch', (batch) => {
        let total = 0
        for (const { args } of batch) total += args[2].length
        sum += total
        seen(batch.length)
      })
    },
  },
  'arg numbers': {
    consume(probe, seen) {
      probe.on('batch', (batch) => {
        let total = 0
        for (let index = 0; index < batch.length; index++) total += batch.arg(index, 0) + batch.arg(index, 1)
        sum += total
        seen(batch.length)
      })
    },
  },
  'arg string': {
    options: STRING,
    consume(probe, seen) {
      probe.on('batch', (batch) => {
        let total = 0
        for (let index = 0; index < batch.length; index++) total += batch.arg(index, 2).length
        sum += total
        seen(batch.length)
      })
    },
  },
  hit: {
    consume(probe, seen) {
      probe.on('hit', ({ args }) => {
        sum += args[0] + args[1]
        seen(1)
      })
    },
  },
  iterator: {
    consume(probe, seen) {
      void (async () => {
        for await (const { args } of probe) {
          sum += args[0] + args[1]
          seen(1)
        }
      })()
    },
  },
}

/** How long a thread has run so far, in nanoseconds (Documentation/scheduler/sched-stats.rst). */
function runTimeNs(tid) {
  return Number(readFileSync(`${TASKS}/${tid}/schedstat`, 'utf8').split(' ')[0])
}

function readerThread() {
  return readdirSync(TASKS).find((tid) => {
    try {
      return readFileSync(`${TASKS}/${tid}/comm`, 'utf8') === 'uprobe-reader\n'
    } catch {
      // A thread that ended since the listing.
      return false
    }
  })
}

const SCALE = { records: 3600, recordBytes: 72, textBytes: 63, warmUps: 200, rounds: 400 }

/** How fast this machine is: what its JavaScript takes at the least, in nanoseconds, for a record whose two numbers are read through a typed array, and for a string of those 63 bytes. */
function machineScale() {
  const { records, recordBytes, textBytes, warmUps, rounds } = SCALE
  const bytes = Buffer.alloc(records * recordBytes, 'x')
  const words = new Int32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4)
  const readNumbers = () => {
    let total = 0
    for (let word = 0; word < words.length; word += recordBytes / 4) total += words[word + 12] + words[word + 14]
    return total
  }
  const readTexts = () => {
    let total = 0
    for (let at = 0; at < bytes.length; at += recordBytes) total += bytes.toString('latin1', at, at + textBytes).length
    return total
  }
  const time = (work) => {
    for (let round = 0; round < warmUps; round++) sum += work()
    const before = runTimeNs(process.pid)
    for (let round = 0; round < rounds; round++) sum += work()
    return (runTimeNs(process.pid) - before) / (rounds * records)
  }
  return { typedArray: time(readNumbers), text: time(readTexts) }
}

async function main([way, spec, pid, records, recordsAHit, ringBytes]) {
  const say = (line) => process.stdout.write(`${line}\n`)
  multiplyRecords(loadNative(), Number(recordsAHit))
  const tracer = new Tracer({ ringBytes: Number(ringBytes), pendingLimitBytes: Number(ringBytes) })
  const { options, consume } = WAYS[way]
  const probe = await tracer.attach(spec, { pid: Number(pid), queueLimit: 2 * Number(records), ...options })
  const reader = readerThread()
  const times = () => ({ main: runTimeNs(process.pid), reader: runTimeNs(reader) })
  let missing = 0
  let before = times()
  consume(probe, (hits) => {
    missing -= hits
    if (missing > 0 || missing <= -hits) return
    const after = times()
    say(JSON.stringify({ main: after.main - before.main, reader: after.reader - before.reader }))
  })
  const commands = {
    begin() {
      missing = Number(records)
      before = times()
      say('begun')
    },
    scale: () => say(JSON.stringify(machineScale())),
  }
  createInterface({ input: process.stdin })
    .on('line', (line) => commands[line]())
    .once('close', async () => {
      await probe.detach()
      const { lost } = probe.stats()
      await tracer.close()
      if (Number.isNaN(sum)) throw new Error('a consumer read something that is no number')
      say(`lost ${lost}`)
    })
  say('ready')
}

void main(process.argv.slice(2))
