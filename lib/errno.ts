/**
 * Errnos that the kernel answers with and that mean something here.
 */
import { constants } from 'node:os'

export const {
  EACCES,
  EBUSY,
  EFAULT,
  EINVAL,
  EIO,
  ELOOP,
  EMFILE,
  ENFILE,
  ENODEV,
  ENOENT,
  ENOEXEC,
  ENOMEM,
  ENOSPC,
  ENOSYS,
  ENXIO,
  EPERM,
  EPROTO,
  ERANGE,
  ESRCH,
  ESTALE,
} = constants.errno

/**
 * The kernel's own ENOTSUPP, which libc has no name for. It reaches user space when an instruction cannot be executed out of line
 * (`arch_uprobe_analyze_insn`, arch/x86/kernel/uprobes.c).
 */
export const ENOTSUPP = 524
