import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, it } from 'node:test'
import { checkAggregateOptions } from '../../lib/aggregate/options.js'
import { UprobeError } from '../../lib/errors.js'
import { checkAttachOptions, checkTracerOptions } from '../../lib/options.js'

const ROOT = join(__dirname, '../..')

/** The part of a page under a heading, up to the next one. */
function section(page: string, heading: string): string {
  const text = readFileSync(join(ROOT, 'docs', page), 'utf8')
  const start = text.indexOf(`\n${heading}`)
  assert.notEqual(start, -1, `${page} has no heading ${heading}`)
  const body = text.slice(start + 1 + heading.length)
  const end = body.search(/\n#+ /)
  return end === -1 ? body : body.slice(0, end)
}

/** The options that a check knows, as it lists them when it meets one that it does not. */
function knownOptions(check: (options: object) => unknown): string[] {
  try {
    check({ nonsense: true })
  } catch (error) {
    if (error instanceof UprobeError) return (/there are (.*)\.$/.exec(error.message)?.[1] ?? '').split(', ')
    throw error
  }
  throw new Error('an unknown option was accepted')
}

/** First column of the table in a section. */
function rows(text: string): string[] {
  return [...text.matchAll(/^\| `(\w+)` /gm)].map(([, name = '']) => name)
}

describe('docs/guide.md', () => {
  it('has a row for each option of the tracer, and no other', () => {
    assert.deepEqual(rows(section('guide.md', '### Options of the tracer')).sort(), knownOptions(checkTracerOptions).sort())
  })

  it('has a row for each option of attach, and no other', () => {
    assert.deepEqual(rows(section('guide.md', '### Options of `attach`')).sort(), knownOptions(checkAttachOptions).sort())
  })

  it('has a row for each option of aggregate that is its own, and no other', () => {
    const known = knownOptions((options) => checkAggregateOptions('uprobe:f', options))
    const own = known.filter((name) => !knownOptions(checkAttachOptions).includes(name) || name === 'stringLimit')
    assert.deepEqual(rows(section('guide.md', '### Options of `aggregate`')).sort(), own.sort())
  })
})

describe('docs/cli.md', () => {
  const help = (...args: string[]): string => {
    const { status, stdout, stderr } = spawnSync(process.execPath, [join(ROOT, 'dist/cli/main.js'), ...args, '--help'], {
      encoding: 'utf8',
    })
    assert.equal(status, 0, stderr)
    return stdout
  }
  const commands = [...help().matchAll(/^ {2}(\w+) (?:\[options\]|\[command\])/gm)]
    .map(([, name = '']) => name)
    .filter((name) => name !== 'help')

  it('has a heading for each command, and no other', () => {
    const headings = [...readFileSync(join(ROOT, 'docs/cli.md'), 'utf8').matchAll(/^## uprobe (\w+)/gm)].map(([, name = '']) => name)
    assert.notEqual(commands.length, 0)
    assert.deepEqual(headings, commands)
  })

  for (const command of commands) {
    it(`has a row for each option of ${command}, and no other`, () => {
      const options = [...help(command).matchAll(/^ {2}((?:-\w, )?--[a-z]+)/gm)].map(([, flags = '']) => flags)
      const documented = [...section('cli.md', `## uprobe ${command}`).matchAll(/^\| `((?:-\w, )?--[a-z]+)/gm)].map(
        ([, flags = '']) => flags,
      )
      // These two are the same everywhere and described once, at the top.
      assert.deepEqual(documented.sort(), options.filter((flags) => flags !== '--json' && flags !== '-h, --help').sort())
    })
  }
})
