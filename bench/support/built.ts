/**
 * The package as it is published, for benchmarks in which its JavaScript counts: what a loader makes of TypeScript is not what the compiler makes of it, and slower.
 */
import type * as Source from '../../lib/index.js'
import type * as SourceNative from '../../lib/native.js'

export const { Tracer, UprobeError } = require('../../dist/index.js') as typeof Source
export const { loadNative } = require('../../dist/native.js') as typeof SourceNative
