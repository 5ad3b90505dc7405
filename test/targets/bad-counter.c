/*
 * Probes whose counter the kernel cannot raise, or refuses to:
 *
 *   t:readonly   the semaphore lies in .rodata, which is never mapped writable
 *   t:bss        the semaphore lies in .bss, which is in no file; enough of it that it begins a page of its own
 *   t:odd        the semaphore lies at an odd address
 *   t:good       nothing is wrong with it, for comparison
 *
 * Any command fires all of them once.
 */
#include "probe.h"
#include "protocol.h"

/* Assembled by hand: a const object that is volatile would be placed in .data. */
__asm__(".section .rodata\n.balign 2\nreadonly_semaphore: .2byte 0\n.previous\n"
        ".section .probes, \"aw\", \"progbits\"\n.balign 2\n.byte 0\nodd_semaphore: .2byte 0\n.balign 2\n.previous\n"
        ".section .bss\n.balign 65536\n.skip 65536\nbss_semaphore: .skip 2\n.previous\n");

SEMAPHORE(good_semaphore);

static __attribute__((noinline)) void fire(int index) {
  PROBE("t", "readonly", "readonly_semaphore", "-4@%[index]", [index] "nor"(index));
  PROBE("t", "bss", "bss_semaphore", "-4@%[index]", [index] "nor"(index));
  PROBE("t", "odd", "odd_semaphore", "-4@%[index]", [index] "nor"(index));
  PROBE("t", "good", "good_semaphore", "-4@%[index]", [index] "nor"(index));
}

int main(void) {
  char line[64];
  answer("ready");
  while (read_command(line, sizeof line)) {
    fire(1);
    answer("fired");
  }
  return 0;
}
