/**
 * What can happen, each with when it may, what it does to the model, and what must come of it in reality.
 */
import assert from 'node:assert/strict'
import fc from 'fast-check'
import { repair } from '../../lib/index.js'
import { writeCounter } from '../support/memory.js'
import { type Agent, CLAIMED, COUNTERS, type Counter, type Model, type ModelProbe, SITES } from './model.js'
import type { Real } from './real.js'

type Command = fc.AsyncCommand<Model, Real, false>

const MAX_TARGETS = 3

/** Chooses one of what there is by a number that was drawn before anybody knew what there would be. */
function pick<T>(from: readonly T[], index: number): T {
  const picked = from[index % from.length]
  assert.ok(picked !== undefined)
  return picked
}

abstract class Step implements Command {
  abstract check(model: Readonly<Model>): boolean
  abstract act(model: Model, real: Real): Promise<void>
  abstract toString(): string

  async run(model: Model, real: Real): Promise<void> {
    await this.act(model, real)
    await real.agreesWith(model)
  }
}

/** The environment in which a table of counters is kept. */
function home(agent: Agent): 'here' | 'elsewhere' {
  return agent === 'mortal' ? 'elsewhere' : 'here'
}

class Attach extends Step {
  constructor(
    private readonly agent: Agent,
    private readonly counter: Counter,
    private readonly mode: 'kernel' | 'msb',
    /** 0 for every process, otherwise a target. */
    private readonly where: number,
  ) {
    super()
  }

  check(model: Readonly<Model>): boolean {
    if (model.targets.length === 0 || model.probes.size >= 5) return false
    // What one process of many does not allow is a warning, which has tests of its own.
    return this.#scope(model) !== null || !(model.hasLeaks(this.counter, null) || model.hasBits(this.counter, null))
  }

  #scope(model: Readonly<Model>): number | null {
    return this.where === 0 ? null : pick(model.targets, this.where - 1)
  }

  async act(model: Model, real: Real): Promise<void> {
    const { agent, counter, mode } = this
    const scope = this.#scope(model)
    model.recover()
    const id = model.newId()
    const wanted = this.#outcome(model, scope)
    assert.equal(await real.attach(id, agent, counter, mode, scope), wanted)
    if (wanted === 'attached') model.probes.set(id, { id, agent, counter, mode, scope, since: model.now(), state: 'attached' })
  }

  #outcome(model: Model, scope: number | null): string {
    const { agent, counter, mode } = this
    const held = [...model.probes.values()].filter((probe) => probe.counter === counter)
    if (held.some((probe) => home(probe.agent) === home(agent) && probe.mode !== mode)) return 'ERR_UPROBE_COUNTER_MODE'
    if (mode === 'msb') {
      if (model.isCounted(counter)) return 'ERR_UPROBE_COUNTER_BUSY'
      if (model.hasLeaks(counter, scope) || (model.hasBits(counter, scope) && !model.isClaimed(scope ?? -1, counter)))
        return 'ERR_UPROBE_COUNTER_FOREIGN'
      return 'attached'
    }
    if (model.claims(counter).length > 0) return 'ERR_UPROBE_COUNTER_MISMATCH'
    return model.hasBits(counter, scope) ? 'ERR_UPROBE_COUNTER_NEGATIVE' : 'attached'
  }

  toString(): string {
    return `attach(${this.agent}, ${this.counter}, ${this.mode}, ${this.where === 0 ? 'every process' : `target ${this.where - 1}`})`
  }
}

abstract class OfProbe extends Step {
  constructor(protected readonly index: number) {
    super()
  }

  check(model: Readonly<Model>): boolean {
    return model.probes.size > 0
  }

  protected probe(model: Readonly<Model>): ModelProbe {
    return pick([...model.probes.values()], this.index)
  }
}

class Pause extends OfProbe {
  async act(model: Model, real: Real): Promise<void> {
    const probe = this.probe(model)
    assert.equal(await real.change(probe.id, probe.agent, 'pause'), 'done')
    model.switchOff(probe)
    if (model.leavesChildren(probe)) await real.letOthersCome()
  }

  toString(): string {
    return `pause(${this.index})`
  }
}

class Resume extends OfProbe {
  override check(model: Readonly<Model>): boolean {
    return model.probes.size > 0 && !model.hasBits(this.probe(model).counter, null) && !model.hasLeaks(this.probe(model).counter, null)
  }

  async act(model: Model, real: Real): Promise<void> {
    const probe = this.probe(model)
    const refused = probe.state === 'paused' && probe.mode === 'kernel' && model.claims(probe.counter).length > 0
    // A claim that is set over its own breakpoint, in a process that is named, may be a bit that somebody left over a stuck one: the kernel is not asked. Else it refuses for the guards.
    const set = probe.scope !== null && model.isClaimed(probe.scope, probe.counter)
    const refusal = set ? 'ERR_UPROBE_COUNTER_NEGATIVE' : 'ERR_UPROBE_COUNTER_MISMATCH'
    assert.equal(await real.change(probe.id, probe.agent, 'resume'), refused ? refusal : 'done')
    if (!refused) probe.state = 'attached'
  }

  toString(): string {
    return `resume(${this.index})`
  }
}

class Detach extends OfProbe {
  async act(model: Model, real: Real): Promise<void> {
    const probe = this.probe(model)
    const { id, agent, mode, scope, counter, since } = probe
    assert.equal(await real.change(id, agent, 'detach'), 'done')
    model.switchOff(probe)
    model.probes.delete(id)
    if (mode === 'msb' && scope !== null) model.clearInherited(scope, counter, since)
  }

  toString(): string {
    return `detach(${this.index})`
  }
}

class Spawn extends Step {
  check(model: Readonly<Model>): boolean {
    return model.targets.length < MAX_TARGETS
  }

  async act(model: Model, real: Real): Promise<void> {
    model.addProcess(await real.spawn())
  }

  toString(): string {
    return 'spawn'
  }
}

abstract class OfTarget extends Step {
  constructor(protected readonly index: number) {
    super()
  }

  check(model: Readonly<Model>): boolean {
    return model.targets.length > 0 && model.childOf(this.target(model)) === undefined
  }

  protected target(model: Readonly<Model>): number {
    return pick(model.targets, this.index)
  }
}

class Fork extends OfTarget {
  /** What a child gets of breakpoints and counts depends on the kernel, and has tests of its own. */
  override check(model: Readonly<Model>): boolean {
    return super.check(model) && COUNTERS.every((counter) => !model.isCounted(counter))
  }

  async act(model: Model, real: Real): Promise<void> {
    const parent = this.target(model)
    const claimed = COUNTERS.filter((counter) => model.expected(parent, counter) === CLAIMED && !model.isKeptOff(counter))
    const child = await real.fork(parent)
    // Until they have looked at it, what they do with it depends on who is killed or paused in between. The mortal one says nothing of its looks, but they end with it.
    for (const { id, agent } of model.claimsEverywhere()) if (agent !== 'mortal') await real.arrived(id, child)
    const added = model.addProcess(child, parent)
    for (const counter of claimed) added.bits.add(counter)
  }

  toString(): string {
    return `fork(${this.index})`
  }
}

class EndChild extends OfTarget {
  override check(model: Readonly<Model>): boolean {
    return model.targets.length > 0 && model.childOf(this.target(model)) !== undefined
  }

  async act(model: Model, real: Real): Promise<void> {
    const parent = this.target(model)
    const child = model.childOf(parent)
    assert.ok(child !== undefined)
    await real.endChild(parent, child)
    model.removeProcess(child)
  }

  toString(): string {
    return `endChild(${this.index})`
  }
}

async function endProbes(model: Model, real: Real, process: number): Promise<void> {
  for (const { id, agent, scope } of model.probes.values()) if (scope === process) await real.ended(id, agent)
}

class Exec extends OfTarget {
  async act(model: Model, real: Real): Promise<void> {
    const id = this.target(model)
    assert.equal(await real.target(id).ask('exec'), 'ready')
    await endProbes(model, real, id)
    model.removeProcess(id)
    model.addProcess(id)
  }

  toString(): string {
    return `exec(${this.index})`
  }
}

class Exit extends OfTarget {
  override check(model: Readonly<Model>): boolean {
    return super.check(model) && model.targets.length > 1
  }

  async act(model: Model, real: Real): Promise<void> {
    const id = this.target(model)
    await real.target(id).end()
    real.processes.delete(id)
    await endProbes(model, real, id)
    model.removeProcess(id)
  }

  toString(): string {
    return `exit(${this.index})`
  }
}

class Kill extends Step {
  check(model: Readonly<Model>): boolean {
    return [...model.probes.values()].some(({ agent }) => agent === 'mortal')
  }

  async act(model: Model, real: Real): Promise<void> {
    const dying = [...model.probes.values()].filter(({ agent }) => agent === 'mortal')
    await real.kill()
    for (const { id, mode, counter, scope, since, state } of dying) {
      model.probes.delete(id)
      if (mode !== 'msb') continue
      const processes = [...model.processes.keys()].filter((process) => scope === null || scope === process)
      model.orphans.push({ counter, processes, since })
      if (state === 'attached') for (const process of processes) model.process(process).bits.add(counter)
    }
  }

  toString(): string {
    return 'kill'
  }
}

class ForeignAttach extends Step {
  constructor(
    private readonly counter: Counter,
    private readonly site: number,
    private readonly where: number,
  ) {
    super()
  }

  check(model: Readonly<Model>): boolean {
    return model.targets.length > 0 && model.foreign.size < 3 && !model.hasBits(this.counter, null)
  }

  async act(model: Model, real: Real): Promise<void> {
    const scope = this.where === 0 ? null : pick(model.targets, this.where - 1)
    const site = this.site % SITES[this.counter]
    const refused = model.claims(this.counter).length > 0
    const id = model.newId()
    assert.equal(await real.attachForeign(id, this.counter, site, scope), refused ? 'EINVAL' : 'attached')
    if (!refused) model.foreign.set(id, { id, counter: this.counter, site, scope })
  }

  toString(): string {
    return `foreignAttach(${this.counter}, ${this.site}, ${this.where})`
  }
}

class ForeignDetach extends Step {
  constructor(private readonly index: number) {
    super()
  }

  check(model: Readonly<Model>): boolean {
    return model.foreign.size > 0
  }

  async act(model: Model, real: Real): Promise<void> {
    const { id } = pick([...model.foreign.values()], this.index)
    await real.detachForeign(id)
    model.foreign.delete(id)
  }

  toString(): string {
    return `foreignDetach(${this.index})`
  }
}

/** A tool that counts by hand raises a counter and is gone. */
class Leak extends OfTarget {
  constructor(
    index: number,
    private readonly counter: Counter,
  ) {
    super(index)
  }

  override check(model: Readonly<Model>): boolean {
    return super.check(model) && model.claims(this.counter).length === 0 && !model.hasBits(this.counter, this.target(model))
  }

  async act(model: Model, real: Real): Promise<void> {
    const id = this.target(model)
    const pid = real.pid(id)
    writeCounter(pid, real.path, real.refCtrOffset(this.counter), real.value(pid, this.counter) + 1)
    model.process(id).leaks[this.counter]++
  }

  toString(): string {
    return `leak(${this.index}, ${this.counter})`
  }
}

class Repair extends OfTarget {
  async act(model: Model, real: Real): Promise<void> {
    const id = this.target(model)
    await repair({ pid: real.pid(id), dryRun: false, leaseDir: real.leaseDir })
    model.recover(id)
    for (const counter of COUNTERS) {
      // A site that is claimed, in whichever process, is registered without its counter: it cannot be pinned, and the leak is left.
      if (model.claims(counter).length === 0) model.process(id).leaks[counter] = 0
    }
  }

  toString(): string {
    return `repair(${this.index})`
  }
}

/** Arbitrary sequences of all of these. */
export function sequences(maxCommands: number): fc.Arbitrary<Iterable<Command>> {
  const agent = fc.constantFrom<Agent>('first', 'second', 'mortal')
  const counter = fc.constantFrom<Counter>('gated', 'shared')
  const mode = fc.constantFrom<'kernel' | 'msb'>('kernel', 'msb', 'msb')
  const where = fc.nat({ max: MAX_TARGETS })
  const index = fc.nat({ max: 7 })
  const attach = fc.tuple(agent, counter, mode, where).map(([a, c, m, w]) => new Attach(a, c, m, w))
  return fc.commands<Model, Real, false>(
    [
      attach,
      attach,
      attach,
      index.map((i) => new Pause(i)),
      index.map((i) => new Resume(i)),
      index.map((i) => new Detach(i)),
      index.map((i) => new Detach(i)),
      fc.constant(new Spawn()),
      index.map((i) => new Fork(i)),
      index.map((i) => new EndChild(i)),
      index.map((i) => new Exec(i)),
      index.map((i) => new Exit(i)),
      fc.constant(new Kill()),
      fc.tuple(counter, fc.nat({ max: 2 }), where).map(([c, s, w]) => new ForeignAttach(c, s, w)),
      index.map((i) => new ForeignDetach(i)),
      fc.tuple(index, counter).map(([i, c]) => new Leak(i, c)),
      index.map((i) => new Repair(i)),
    ],
    { maxCommands, size: 'max' },
  )
}
