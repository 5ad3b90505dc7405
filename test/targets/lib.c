/*
 * A library that usdt.c loads while it runs. It has a probe of its own with a semaphore of its own, and another one, t:twin, that the program has too: one name, two
 * files, two semaphores. The text that it passes lies in a page that nobody has touched when the first hit comes.
 */
#include "probe.h"

SEMAPHORE(lib_own_semaphore);
SEMAPHORE(lib_twin_semaphore);

__attribute__((visibility("default"))) long lib_fire(long count) {
  long executed = 0;
  for (int i = 0; i < count; i++) {
    if (lib_own_semaphore != 0) {
      PROBE("t", "own", "lib_own_semaphore", "-4@%[index]", [index] "nor"(i));
      executed++;
    }
    if (lib_twin_semaphore != 0) {
      PROBE("t", "twin", "lib_twin_semaphore", "8@%[text]", [text] "nor"("library"));
      executed++;
    }
  }
  return executed;
}
