/*
 * Probes whose counter the kernel cannot raise, or refuses to:
 *
 *   t:readonly   the semaphore lies in .rodata, which is never mapped writable
 *   t:bss        the semaphore lies in .bss, which is in no file; enough of it that it begins a page of its own
 *   t:shared     the semaphore lies in a page that the program has replaced with a shared mapping of its file
 *   t:odd        the semaphore lies at an odd address
 *   t:good       nothing is wrong with it, for comparison
 *
 * Any command fires all of them once.
 */
#include "probe.h"
#include "protocol.h"

#include <fcntl.h>
#include <stdint.h>
#include <sys/mman.h>

/* Assembled by hand: a const object that is volatile would be placed in .data. */
__asm__(".section .rodata\n.balign 2\nreadonly_semaphore: .2byte 0\n.previous\n"
        ".section .probes, \"aw\", \"progbits\"\n.balign 2\n.byte 0\nodd_semaphore: .2byte 0\n.balign 2\n.previous\n"
        ".section .data\n.balign 65536\nshared_semaphore: .2byte 0\n.skip 65534\n.previous\n"
        ".section .bss\n.balign 65536\n.skip 65536\nbss_semaphore: .skip 2\n.previous\n");

SEMAPHORE(good_semaphore);

static __attribute__((noinline)) void fire(int index) {
  PROBE("t", "readonly", "readonly_semaphore", "-4@%[index]", [index] "nor"(index));
  PROBE("t", "bss", "bss_semaphore", "-4@%[index]", [index] "nor"(index));
  PROBE("t", "shared", "shared_semaphore", "-4@%[index]", [index] "nor"(index));
  PROBE("t", "odd", "odd_semaphore", "-4@%[index]", [index] "nor"(index));
  PROBE("t", "good", "good_semaphore", "-4@%[index]", [index] "nor"(index));
}

#define SHARED_BYTES 65536

extern char shared_semaphore[] __attribute__((visibility("hidden")));

/* Where the page is in the file, says the kernel. */
static void share(void) {
  uintptr_t page = (uintptr_t)shared_semaphore;
  FILE *maps = fopen("/proc/self/maps", "r");
  int file = open("/proc/self/exe", O_RDONLY);
  char line[4096];
  if (maps == NULL || file < 0) abort();
  while (fgets(line, sizeof line, maps) != NULL) {
    unsigned long start, end, offset;
    if (sscanf(line, "%lx-%lx %*s %lx", &start, &end, &offset) != 3 || page < start || page >= end) continue;
    if (mmap(shared_semaphore, SHARED_BYTES, PROT_READ, MAP_SHARED | MAP_FIXED, file, (off_t)(offset + page - start)) == MAP_FAILED) abort();
    fclose(maps);
    close(file);
    return;
  }
  abort();
}

int main(void) {
  char line[64];
  share();
  answer("ready");
  while (read_command(line, sizeof line)) {
    fire(1);
    answer("fired");
  }
  return 0;
}
