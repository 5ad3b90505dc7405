/**
 * Runs in a guest: the test files that it was given, one after another in one process. A process a file would take more time than the tests of many files, as everything
 * is emulated.
 */
const { suite } = require('node:test')

// What the kernel's command line sets and the kernel does not know is in the environment of the first process.
for (const name of require('./tests.json')[process.env.UPROBE_GUEST]) {
  suite(name.replace(/^test\/|\.test\.js$/g, ''), () => {
    require(`./${name}`)
  })
}
