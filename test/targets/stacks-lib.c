/* A library with frame pointers that stacks.c loads and calls through. One of its functions has no dynamic symbol. */
#pragma GCC optimize("no-omit-frame-pointer", "no-optimize-sibling-calls")

#define BARRIER __asm__ volatile("" ::: "memory")

__attribute__((noinline, noclone, used)) static void lib_hidden(void (*call)(void)) {
  call();
  BARRIER;
}

__attribute__((noinline, noclone, used)) void lib_outer(void (*call)(void)) {
  lib_hidden(call);
  BARRIER;
}
