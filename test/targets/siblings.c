/*
 * A program in which two probes share one semaphore:
 *
 *   t:left, t:right     fire only while it is up   -4@index
 *
 * Whoever claims the counter for one of them has to reckon with tracers of the other.
 *
 * Commands:
 *
 *   left N, right N     fire; the answer says how many executed the probe
 *   counter             the semaphore as the program reads it
 */
#include "probe.h"
#include "protocol.h"

SEMAPHORE(t_siblings_semaphore);

static __attribute__((noinline)) int fire_left(int index) {
  if (t_siblings_semaphore == 0) return 0;
  PROBE("t", "left", "t_siblings_semaphore", "-4@%[index]", [index] "nor"(index));
  return 1;
}

static __attribute__((noinline)) int fire_right(int index) {
  if (t_siblings_semaphore == 0) return 0;
  PROBE("t", "right", "t_siblings_semaphore", "-4@%[index]", [index] "nor"(index));
  return 1;
}

static long fire(int (*probe)(int), const char *count) {
  long executed = 0;
  for (int i = 0; i < atoi(count); i++) executed += probe(i);
  return executed;
}

int main(void) {
  answer("ready");
  for (char line[64]; read_command(line, sizeof line);) {
    char *argument;
    if ((argument = argument_of(line, "left"))) {
      answer("executed %ld", fire(fire_left, argument));
    } else if ((argument = argument_of(line, "right"))) {
      answer("executed %ld", fire(fire_right, argument));
    } else {
      answer("counter %d", t_siblings_semaphore);
    }
  }
  return 0;
}
