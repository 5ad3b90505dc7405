/**
 * What guests have for tsx, with which tests start TypeScript in processes of their own: in a guest everything is compiled, so a name that ends in .ts means the file beside it.
 */
const Module = require('node:module')

const resolve = Module._resolveFilename
Module._resolveFilename = function (request, ...rest) {
  return resolve.call(this, request.replace(/^(\.*\/.*)\.ts$/, '$1.js'), ...rest)
}
