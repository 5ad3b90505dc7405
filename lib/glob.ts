/**
 * Name patterns: `*` stands for any characters, `?` for one. Everything else stands for itself.
 *
 * Matching goes back to the last `*` only, so it takes at most pattern times text steps, whatever the pattern; a regular expression made from it could take
 * exponentially many.
 */

/** Whether a pattern can match more than one name. */
export function hasWildcard(pattern: string): boolean {
  return pattern.includes('*') || pattern.includes('?')
}

/** Makes a function that tells whether a whole name matches. */
export function compileGlob(pattern: string): (name: string) => boolean {
  if (!hasWildcard(pattern)) return (name) => name === pattern
  // Of ten thousand names most differ from the pattern before its first wildcard, and methods of strings are compiled code from the first call on.
  const prefix = pattern.slice(0, pattern.search(/[*?]/))
  if (pattern === `${prefix}*`) return (name) => name.startsWith(prefix)
  return (name) => name.startsWith(prefix) && matches(pattern, name)
}

function matches(pattern: string, name: string): boolean {
  let p = 0
  let n = 0
  let star = -1
  let resume = 0
  while (n < name.length) {
    if (pattern[p] === '*') {
      // A star at the end takes the rest.
      if (p === pattern.length - 1) return true
      star = p++
      resume = n
    } else if (p < pattern.length && (pattern[p] === '?' || pattern[p] === name[n])) {
      p++
      n++
    } else if (star >= 0) {
      // The last star takes one character more.
      p = star + 1
      n = ++resume
    } else {
      return false
    }
  }
  while (pattern[p] === '*') p++
  return p === pattern.length
}
