/*
 * Plain functions, for probes on functions and on their return.
 *
 *   f_add(int, int), f_negative(), f_six(6 × long), f_text(const char *), f_depth(n) which calls itself n times
 *   f_locked        begins with a lock prefix, which the kernel refuses to execute out of line
 *   f_trap          begins with a breakpoint instruction of its own
 *
 * Commands: add N, negative, six, text WORD, depth N, allocate N SIZE, exit N; the answer is what the function returned: of `add N` the sum of all, of `allocate` the
 * address of the last of N blocks that malloc gave. `writable-text` makes the page of f_add writable, as programs do that patch themselves: the kernel puts no
 * breakpoint into such a page.
 */
#include "protocol.h"

#include <errno.h>
#include <stdint.h>
#include <sys/mman.h>

#define EXPORT __attribute__((noinline, noclone, used, visibility("default")))

EXPORT int f_add(int a, int b) {
  __asm__ volatile("");
  return a + b;
}

EXPORT int f_negative(void) {
  __asm__ volatile("");
  return -1;
}

EXPORT long f_six(long a, long b, long c, long d, long e, long f) {
  __asm__ volatile("");
  return a + 2 * b + 3 * c + 4 * d + 5 * e + 6 * f;
}

EXPORT const char *f_text(const char *text) {
  __asm__ volatile("");
  return text;
}

EXPORT int f_depth(int n) {
  if (n == 0) return 0;
  int below = f_depth(n - 1);
  /* Keeps the compiler from turning the recursion into a loop. */
  __asm__ volatile("" : "+r"(below));
  return below + 1;
}

/* Never called: only probed. */
#if defined(__x86_64__)
__asm__(".globl f_locked\n.type f_locked, @function\nf_locked: lock incl (%rdi)\nret\n.size f_locked, . - f_locked\n"
        ".globl f_trap\n.type f_trap, @function\nf_trap: int3\nret\n.size f_trap, . - f_trap\n");
#elif defined(__aarch64__)
__asm__(".globl f_locked\n.type f_locked, %function\nf_locked: ldxr w1, [x0]\nret\n.size f_locked, . - f_locked\n"
        ".globl f_trap\n.type f_trap, %function\nf_trap: brk #5\nret\n.size f_trap, . - f_trap\n");
#endif

/* Volatile, so that no allocation is optimized away; nothing is freed, since the blocks are few. */
static void *volatile block;

static void command(char *line) {
  char *argument;
  if ((argument = argument_of(line, "add"))) {
    long sum = 0;
    long count = atol(argument);
    for (int i = 0; i < count; i++) sum += f_add(i, 1000);
    answer("returned %ld", sum);
  } else if ((argument = argument_of(line, "negative"))) {
    answer("returned %d", f_negative());
  } else if ((argument = argument_of(line, "six"))) {
    answer("returned %ld", f_six(1, -2, 3, -4, 5, -6));
  } else if ((argument = argument_of(line, "text"))) {
    answer("returned %s", f_text(argument));
  } else if ((argument = argument_of(line, "depth"))) {
    answer("returned %d", f_depth(atoi(argument)));
  } else if ((argument = argument_of(line, "allocate"))) {
    long count = strtol(argument, &argument, 10);
    size_t size = strtoul(argument, NULL, 10);
    for (long i = 0; i < count; i++) block = malloc(size);
    answer("returned %lu", (unsigned long)block);
  } else if ((argument = argument_of(line, "writable-text"))) {
    uintptr_t page_bytes = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t page = (uintptr_t)f_add & ~(page_bytes - 1);
    int failed = mprotect((void *)page, page_bytes, PROT_READ | PROT_WRITE | PROT_EXEC);
    answer(failed ? "error %s" : "writable", strerror(errno));
  } else if ((argument = argument_of(line, "exit"))) {
    _exit(atoi(argument));
  } else {
    answer("error unknown command %s", line);
  }
}

int main(void) {
  char line[4096];
  answer("ready");
  while (read_command(line, sizeof line)) command(line);
  return 0;
}
