/**
 * The public surface of `uprobe`.
 *
 * Importing loads no native code and never throws. What is not exported here is not API.
 */
export type { ArgJson, ArgumentValue, Hit } from './capture/hit.js'
export type { ArmedState, SiteTarget } from './counter/verify.js'
export type { HitBatch } from './delivery/batch.js'
export { type DoctorCheck, doctor } from './doctor.js'
export { ERROR_CODES, UprobeError, type UprobeErrorCode } from './errors.js'
export { list, type UsdtListing } from './list.js'
export type { AttachOptions, TracerOptions } from './options.js'
export type { NamedStats, Probe, ProbeEvents, ProbeSite, ProbeState, ProbeStateChange, ProbeStats } from './probe.js'
export { Tracer } from './tracer.js'
