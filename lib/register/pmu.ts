/**
 * The uprobe PMU, as sysfs describes it.
 *
 * Its type number differs between kernels, and `format/ref_ctr_offset` exists exactly when the kernel can raise a counter
 * (4.20 and later; kernel/events/core.c, `uprobe_attr_groups`).
 */
import { existsSync, readFileSync } from 'node:fs'
import { UprobeError } from '../errors.js'

const DEVICE = '/sys/bus/event_source/devices/uprobe'

/** What the kernel's uprobe PMU is and can do. */
export interface UprobePmu {
  /** `perf_event_attr.type` */
  readonly type: number
  /** Whether `ref_ctr_offset` is understood. */
  readonly refCtrOffset: boolean
}

/** As long as the kernel runs it stays what it is. */
let known: UprobePmu | null = null

/**
 * Reads the description, once.
 * @throws {UprobeError} `ERR_UPROBE_UNSUPPORTED` when the kernel has no uprobe PMU, or sysfs is not mounted.
 */
export function readUprobePmu(): UprobePmu {
  if (known !== null) return known
  let text: string
  try {
    text = readFileSync(`${DEVICE}/type`, 'utf8')
  } catch (cause) {
    throw new UprobeError(
      'ERR_UPROBE_UNSUPPORTED',
      'This kernel offers no uprobe PMU (no /sys/bus/event_source/devices/uprobe). It takes Linux 4.17 or later with CONFIG_UPROBE_EVENTS, and sysfs mounted on /sys.',
      { cause },
    )
  }
  known = { type: Number(text), refCtrOffset: existsSync(`${DEVICE}/format/ref_ctr_offset`) }
  return known
}
