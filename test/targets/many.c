/*
 * A program with 2048 sites that share one semaphore: t:many is the first, and each of the instructions behind it, which are all nops, may be probed like it. None
 * is ever executed.
 *
 * Commands:
 *
 *   counter             the semaphore as the program reads it
 */
#include "probe.h"
#include "protocol.h"

SEMAPHORE(t_many_semaphore);

static __attribute__((noinline, used)) void sites(void) {
  PROBE("t", "many", "t_many_semaphore", "");
  __asm__ volatile(".rept 2047\nnop\n.endr");
}

int main(void) {
  char line[16];
  answer("ready");
  while (read_command(line, sizeof line)) {
    if (strcmp(line, "counter") == 0) {
      answer("counter %d", t_many_semaphore);
    } else {
      answer("error");
    }
  }
  return 0;
}
