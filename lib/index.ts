/**
 * The public surface of `uprobe`.
 *
 * Importing loads no native code and never throws. What is not exported here is not API.
 */
export type { Aggregation } from './aggregate/aggregation.js'
export { bucketBounds } from './aggregate/buckets.js'
export type { AggregateOptions, AggregateSpec, ProbePair } from './aggregate/options.js'
export type {
  AggregateGroup,
  Aggregates,
  AggregationEvents,
  AggregationSnapshot,
  AggregationStats,
  ExponentialHistogram,
  HistogramBuckets,
} from './aggregate/snapshot.js'
export type { Budget } from './budget/options.js'
export type { ArgJson, ArgumentValue } from './capture/arguments.js'
export type { Hit } from './capture/hit.js'
export type { ReleasedCounter } from './counter/control.js'
export type { HeldCounter, HeldCounterProbe, HeldCounterTarget } from './counter/held.js'
export type { CounterInfo, CounterState } from './counter/inspect.js'
export type { CounterOwner } from './counter/owners.js'
export type { RepairEntry } from './counter/repair.js'
export type { ArmedState, SiteTarget } from './counter/site-facts.js'
export type { CounterMode } from './counter/table.js'
export { type CountersOptions, counters } from './counters.js'
export type { HitBatch } from './delivery/batch.js'
export { type DoctorCheck, doctor } from './doctor.js'
export { ERROR_CODES, UprobeError, type UprobeErrorCode } from './errors.js'
export { list, type UsdtListing } from './list.js'
export type { AttachOptions, TracerOptions } from './options.js'
export type { Probe } from './probe.js'
export type { ProbeSite } from './probe-site.js'
export type { NamedStats, ProbeEvents, ProbeState, ProbeStateChange, ProbeStats } from './probe-types.js'
export type { Progress, ProgressStep } from './progress.js'
export { type ReleaseEntry, type ReleaseOptions, type ReleaseOwner, release } from './release.js'
export { type RepairOptions, repair } from './repair.js'
export { foldStack } from './symbolize/folded.js'
export type { StackFrame } from './symbolize/frame.js'
export { Tracer, type TracerEvents } from './tracer.js'
