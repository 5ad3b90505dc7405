/**
 * What is found out once in the life of this process, as what the kernel can do.
 */

/**
 * Makes a question that is asked once: later calls get the same answer. An attempt that itself failed is no answer, since want of a descriptor or of memory says nothing about the next time.
 */
export function once<Subject, Answer>(ask: (subject: Subject) => Promise<Answer>): (subject: Subject) => Promise<Answer> {
  let known: Promise<Answer> | null = null
  return (subject) => {
    if (known !== null) return known
    const attempt = ask(subject)
    known = attempt
    attempt.catch(() => {
      if (known === attempt) known = null
    })
    return attempt
  }
}
