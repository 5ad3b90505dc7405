// Runs in the guest: the test files that the image was made with, one after another, by Node's own runner.
const { run } = require('node:test')
const { spec } = require('node:test/reporters')
const files = require('./tests.json').map((name) => `/uprobe/${name}`)

let failed = 0
let passed = 0
const events = run({ files, concurrency: 1, timeout: 600_000 })
events.on('test:fail', () => failed++)
events.on('test:pass', () => passed++)
events.on('end', () => {
  console.log(`guest: ${passed} passed, ${failed} failed`)
  process.exitCode = failed === 0 && passed > 0 ? 0 : 1
})
events.compose(new spec()).pipe(process.stdout)
