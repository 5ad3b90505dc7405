/**
 * What a test needs of the machine.
 *
 *     test('…', needs({ files: [PYTHON] }), async (t) => { … })
 *
 * What is missing makes the test skipped, with the reason; in continuous integration, where everything is installed on purpose, it makes the test fail.
 */
import { existsSync } from 'node:fs'
import { delimiter, join } from 'node:path'

/** Needs of a test. */
export interface Needs {
  /** Programs that must be found in PATH. */
  readonly programs?: readonly string[]
  /** Files that must exist. */
  readonly files?: readonly string[]
}

function reasons({ programs = [], files = [] }: Needs): string[] {
  const folders = (process.env.PATH ?? '').split(delimiter)
  return [
    ...(process.platform === 'linux' ? [] : ['it traces on Linux only']),
    ...(process.getuid?.() === 0 ? [] : ['it traces, which takes root']),
    ...programs
      // A guest brings what the compiler would have made.
      .filter((program) => program !== 'gcc' || process.env.UPROBE_TEST_TARGETS === undefined)
      .filter((program) => !folders.some((folder) => existsSync(join(folder, program))))
      .map((program) => `${program} is not installed`),
    ...files.filter((file) => !existsSync(file)).map((file) => `there is no ${file}`),
  ]
}

/** Options for `test`: skips it when something that tracing needs, or that is named, is missing. */
export function needs(wanted: Needs = {}): { skip: string | false } {
  const missing = reasons(wanted)
  if (missing.length === 0) return { skip: false }
  if (process.env.CI === 'true') throw new Error(`this test cannot run here: ${missing.join('; ')}`)
  return { skip: missing.join('; ') }
}
