/**
 * Versions of the kernel, where nothing but its release tells what it does. Distributions repair older ones, too, which their release does not say.
 */

/** A version of Linux. */
export type Version = readonly [major: number, minor: number, patch: number]

/** Releases from the first version on, until before the second. */
export type Releases = readonly [from: Version, to: Version]

/** Whether the release, as in `6.12.5-amd64`, is one of those. */
export function isAmong(release: string, releases: readonly Releases[]): boolean {
  return releases.some(([from, to]) => !isBefore(release, from) && isBefore(release, to))
}

/** Whether the release is older than `version`. A release that cannot be read counts as the newest. */
export function isBefore(release: string, version: Version): boolean {
  const match = /^(\d+)\.(\d+)(?:\.(\d+))?/.exec(release)
  if (match === null) return false
  const parts = [match[1], match[2], match[3] ?? '0'].map(Number)
  for (const [index, least] of version.entries()) {
    const part = parts[index] ?? 0
    if (part !== least) return part < least
  }
  return false
}
