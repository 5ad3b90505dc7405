/**
 * Files that may never answer.
 *
 * Where the file system is a server's or another process's (NFS, CIFS, FUSE …), whoever reads a file when that is gone waits without an end and without being killable; so does statfs(2), which would tell the type. A thread
 * of ours that waits so keeps the process from exiting. So which file system it is is taken from /proc/PID/mountinfo, which asks nobody (proc_pid_mountinfo(5)).
 *
 * A mapping is tied to its mount by the device number in /proc/PID/maps: both print that of the superblock (show_map_vma, fs/proc/task_mmu.c; show_mountinfo, fs/proc_namespace.c). Of a file of overlayfs older kernels print
 * that of the layer below, which may be mounted only where we are. What is mounted in neither place is taken for a file system of this machine.
 */
import { readTextOrNull } from '../read-text.js'
import type { Mapping } from './maps.js'

/** File systems that need a server, another machine or another process to answer. */
const REMOTE_TYPES: ReadonlySet<string> = new Set([
  ...['9p', 'afs', 'autofs', 'beegfs', 'ceph', 'cifs', 'coda', 'fuse', 'fuseblk', 'gfs2', 'gpfs', 'lustre', 'nfs', 'nfs4', 'ocfs2'],
  ...['orangefs', 'smb3', 'smbfs', 'vboxsf', 'virtiofs'],
])

interface Mount {
  /** As maps prints it. */
  readonly device: string
  /** As seen from the root of the process. */
  readonly place: string
  readonly remote: boolean
}

/** Parses the text of a `mountinfo` file. */
function parse(text: string): Mount[] {
  const mounts: Mount[] = []
  for (const line of text.split('\n')) {
    // The optional fields before the dash are any number.
    const [, major, minor, place = '', type = ''] = /^\d+ \d+ (\d+):(\d+) \S+ (\S+) .* - (\S+) /.exec(line) ?? []
    if (major === undefined || minor === undefined) continue
    const remote = REMOTE_TYPES.has(type) || type.startsWith('fuse.')
    mounts.push({ device: deviceName(Number(major), Number(minor)), place: unescapePlace(place), remote })
  }
  return mounts
}

/** What is mounted where, for one process and for ourselves. */
export class Mounts {
  private constructor(
    private readonly own: readonly Mount[],
    private readonly ours: readonly Mount[],
  ) {}

  /** @param procDirectory - /proc/PID; if it is gone, nothing is known to be mounted there */
  static of(procDirectory: string): Mounts {
    return Mounts.parse(readTextOrNull(`${procDirectory}/mountinfo`) ?? '', readTextOrNull('/proc/self/mountinfo') ?? '')
  }

  /** From the texts of both files. */
  static parse(own: string, ours: string): Mounts {
    return new Mounts(parse(own), parse(ours))
  }

  /** Whether reading the file of a mapping may hang. */
  mayHangFile({ fileKey }: Pick<Mapping, 'fileKey'>): boolean {
    const [device = ''] = fileKey.split(' ')
    const is = (mount: Mount): boolean => mount.device === device
    return (this.own.find(is) ?? this.ours.find(is))?.remote ?? false
  }

  /**
   * Whether looking for a path may hang, of which symbolic links are not followed.
   * @param root - whose: that of the process, or our own
   */
  mayHangPath(root: 'own' | 'ours', path: string): boolean {
    let holder: Mount | null = null
    for (const mount of this[root]) {
      const holds = mount.place === '/' || mount.place === path || path.startsWith(`${mount.place}/`)
      // Of two at one place the later is on top.
      if (holds && mount.place.length >= (holder?.place.length ?? 0)) holder = mount
    }
    return holder?.remote ?? false
  }
}

/** As seq_path has it for maps: two hexadecimal digits at least. */
function deviceName(major: number, minor: number): string {
  return [major, minor].map((number) => number.toString(16).padStart(2, '0')).join(':')
}

/** Blanks and the like in a path are octal (mangle, fs/proc_namespace.c). */
function unescapePlace(path: string): string {
  return path.replace(/\\([0-7]{3})/g, (_, octal: string) => String.fromCharCode(Number.parseInt(octal, 8)))
}
