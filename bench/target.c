/*
 * The program that the benchmarks trace. Each way of tracing gets a probe of its own, so that all of them can be attached at once and be measured in turn:
 *
 *   bench:intsN      two ints               -4@a -4@b
 *   bench:textN      and a string           -4@a -4@b 8@text
 *   bench:untraced   nobody attaches to it
 *   bench:pairN_start, bench:pairN_done   two sites, one after the other; the number of times counts both
 *   bench:stackN     two ints, below eight more frames
 *   bench:gatedN     two ints, executed only while its semaphore is up
 *   bench:hundred    100 sites in a row, which are attached and detached and never run
 *
 * Each is one nop of one byte, in a function that begins at a cache line. Commands:
 *
 *   run NAME N       executes the probe NAME N times; the answer is the CPU time that it took, in nanoseconds. CPU time leaves out what other
 *                    programs did meanwhile on the same CPU, and has in it all that the kernel did on account of the hits.
 *   wall NAME N      the same, and the answer is the time that passed
 *   pace NAME N RATE  executes the probe NAME N times, RATE times a second on average, at moments that do not depend on each other
 */
#define _GNU_SOURCE
#include "../test/targets/probe.h"
#include "../test/targets/protocol.h"

#include <stdint.h>
#include <time.h>

#define FIRE static __attribute__((noinline, aligned(64))) void

#define DEFINE_INTS(name)                                                                                \
  FIRE fire_##name(int a, int b, const char *text) {                                                     \
    (void)text;                                                                                          \
    PROBE("bench", #name, NO_SEMAPHORE, "-4@%[a] -4@%[b]", [a] "nor"(a), [b] "nor"(b));                  \
  }

#define DEFINE_TEXT(name)                                                                                \
  FIRE fire_##name(int a, int b, const char *text) {                                                     \
    PROBE("bench", #name, NO_SEMAPHORE, "-4@%[a] -4@%[b] 8@%[text]", [a] "nor"(a), [b] "nor"(b), [text] "nor"(text)); \
  }

#define DEFINE_GATED(name)                                                                                         \
  SEMAPHORE(name##_semaphore);                                                                                     \
  FIRE fire_##name(int a, int b, const char *text) {                                                               \
    (void)text;                                                                                                    \
    if (name##_semaphore == 0) return;                                                                             \
    PROBE("bench", #name, #name "_semaphore", "-4@%[a] -4@%[b]", [a] "nor"(a), [b] "nor"(b));                      \
  }

#define DEFINE_PAIR(name)                                                                                          \
  FIRE fire_##name(int a, int b, const char *text) {                                                               \
    (void)text;                                                                                                    \
    PROBE("bench", #name "_start", NO_SEMAPHORE, "-4@%[a] -4@%[b]", [a] "nor"(a), [b] "nor"(b));                   \
    PROBE("bench", #name "_done", NO_SEMAPHORE, "-4@%[a] -4@%[b]", [a] "nor"(a), [b] "nor"(b));                    \
  }

#define STACK_FRAMES 8

/* What comes behind the call keeps it from becoming a jump, so that each call has its frame. */
#define DEFINE_STACK(name)                                                                                         \
  static __attribute__((noinline)) int go_down_##name(int frames, int a, int b) {                                  \
    if (frames == 0) {                                                                                             \
      PROBE("bench", #name, NO_SEMAPHORE, "-4@%[a] -4@%[b]", [a] "nor"(a), [b] "nor"(b));                          \
      return a;                                                                                                    \
    }                                                                                                              \
    int result = go_down_##name(frames - 1, a, b);                                                                 \
    __asm__ volatile("" : "+r"(result));                                                                           \
    return result;                                                                                                 \
  }                                                                                                                \
  FIRE fire_##name(int a, int b, const char *text) {                                                               \
    (void)text;                                                                                                    \
    go_down_##name(STACK_FRAMES, a, b);                                                                            \
  }

#define EACH_GATED(DO) DO(gated0) DO(gated1) DO(gated2) DO(gated3)
#define EACH_INTS(DO)                                                                                              \
  DO(untraced) DO(ints0) DO(ints1) DO(ints2) DO(ints3) DO(ints4) DO(ints5) DO(ints6) DO(ints7) DO(ints8) DO(ints9) \
  DO(ints10) DO(ints11) DO(ints12) DO(ints13) DO(ints14) DO(ints15) DO(ints16) DO(ints17) DO(ints18) DO(ints19)    \
  DO(ints20) DO(ints21) DO(ints22) DO(ints23) DO(ints24) DO(ints25) DO(ints26) DO(ints27) DO(ints28) DO(ints29)
#define EACH_TEXT(DO) DO(text0) DO(text1) DO(text2) DO(text3) DO(text4) DO(text5) DO(text6) DO(text7)
#define EACH_PAIR(DO) DO(pair0) DO(pair1) DO(pair2) DO(pair3) DO(pair4) DO(pair5)
#define EACH_STACK(DO) DO(stack0) DO(stack1) DO(stack2) DO(stack3) DO(stack4) DO(stack5)

EACH_INTS(DEFINE_INTS)
EACH_TEXT(DEFINE_TEXT)
EACH_GATED(DEFINE_GATED)
EACH_PAIR(DEFINE_PAIR)
EACH_STACK(DEFINE_STACK)

struct probe {
  const char *name;
  void (*fire)(int a, int b, const char *text);
  /* Hits each time. */
  int sites;
};

#define ENTRY(name) {#name, fire_##name, 1},
#define PAIR_ENTRY(name) {#name, fire_##name, 2},
static const struct probe probes[] = {EACH_INTS(ENTRY) EACH_TEXT(ENTRY) EACH_GATED(ENTRY) EACH_PAIR(PAIR_ENTRY) EACH_STACK(ENTRY)};

/* Not called. Each round of .rept makes a site with its note. */
__attribute__((used)) static void hundred(void) {
  __asm__ volatile(".rept 100\n");
  PROBE("bench", "hundred", NO_SEMAPHORE, "-4@%[zero]", [zero] "n"(0));
  __asm__ volatile(".endr\n");
}

/* 64 bytes with the terminating zero. */
static const char text[] = "select name, price from articles where id = 4711 and stock > 0;";
_Static_assert(sizeof text == 64, "the string has 64 bytes");

static int64_t cpu_time_ns(void) {
  struct timespec now;
  if (clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now) != 0) abort();
  return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

static int64_t run(const struct probe *probe, long count) {
  int64_t start = cpu_time_ns();
  for (long i = 0; i < count; i += probe->sites) probe->fire((int)i, (int)-i, text);
  return cpu_time_ns() - start;
}

static int64_t wall_time_ns(void) {
  struct timespec now;
  if (clock_gettime(CLOCK_MONOTONIC, &now) != 0) abort();
  return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

static int64_t run_by_the_clock(const struct probe *probe, long count) {
  int64_t start = wall_time_ns();
  run(probe, count);
  return wall_time_ns() - start;
}

/* Time is divided into slots so short that two hits seldom fall into one, and each slot has a hit with the same small probability: a Poisson process, nearly. */
static void pace(const struct probe *probe, long count, long rate) {
  const int64_t slot_ns = 20000;
  const double probability = (double)rate * (double)slot_ns / 1e9;
  const uint64_t threshold = (uint64_t)(probability * 4294967296.0);
  uint64_t state = UINT64_C(0x9E3779B97F4A7C15);
  int64_t next = wall_time_ns();
  for (long i = 0; i < count; i++) {
    do {
      next += slot_ns;
      state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    } while ((state >> 32) >= threshold);
    struct timespec until = {.tv_sec = next / 1000000000, .tv_nsec = next % 1000000000};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) != 0) continue;
    probe->fire((int)i, (int)-i, text);
  }
}

static const struct probe *find(const char *name) {
  for (size_t i = 0; i < sizeof probes / sizeof *probes; i++) {
    if (strcmp(probes[i].name, name) == 0) return &probes[i];
  }
  return NULL;
}

int main(void) {
  char line[256];
  answer("ready");
  while (read_command(line, sizeof line)) {
    char command[16], name[64];
    long count, rate = 0;
    const int words = sscanf(line, "%15s %63s %ld %ld", command, name, &count, &rate);
    const struct probe *probe = words >= 3 ? find(name) : NULL;
    if (probe != NULL && strcmp(command, "run") == 0) {
      answer("nanoseconds %lld", (long long)run(probe, count));
    } else if (probe != NULL && strcmp(command, "wall") == 0) {
      answer("nanoseconds %lld", (long long)run_by_the_clock(probe, count));
    } else if (probe != NULL && strcmp(command, "pace") == 0 && rate > 0) {
      pace(probe, count, rate);
      answer("executed %ld", count);
    } else {
      answer("error unknown command %s", line);
    }
  }
  return 0;
}
