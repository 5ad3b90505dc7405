/*
 * A program that is hit as often as it can be, or as often as it is told.
 *
 *   f_hot(long number)    a function that does next to nothing
 *   f_long(long number)   one that calls it again and again, with t:begin and t:end around each call, and sleeps 5 ms in between, in two parts
 *   t:hot                 a probe with a semaphore that is looked at      -8@number 8@text, a string of 4,000 bytes
 *   t:ungated             and one with a semaphore that nobody looks at   -8@number
 *   t:begin, t:end        two that follow each other, each with a semaphore of its own that is looked at   -8@number
 *
 * Commands:
 *
 *   call MS, gated MS, ungated MS, paired MS    call the function, or come by the probe or the two, for so many milliseconds of CPU time, and at least once; the answer is how often
 *   calls T N           T threads call f_hot N times each, with the numbers 0 to N - 1, at once; the answer is how often in all
 *   fires T N           the same with t:hot
 *   pace RATE, stop     a thread calls f_hot RATE times a second, with the numbers from 0, until told to stop; the answer is how often
 *   pace-probe RATE     the same with t:hot
 *   pace-nested RATE    the same with f_long(1), in which everything else has the number 2, and t:begin and t:end with the number 1 around it
 */
#include "probe.h"
#include "protocol.h"

#include <pthread.h>
#include <time.h>

#define MAX_THREADS 16
/* Between two looks at the clock. */
#define ROUND 128

SEMAPHORE(t_hot_semaphore);
SEMAPHORE(t_ungated_semaphore);
SEMAPHORE(t_begin_semaphore);
SEMAPHORE(t_end_semaphore);

__attribute__((noinline, noclone, used, visibility("default"))) void f_hot(long number) { __asm__ volatile("" : : "r"(number)); }

static char text[4001];

static __attribute__((noinline)) void gated(long number) {
  if (t_hot_semaphore == 0) return;
  PROBE("t", "hot", "t_hot_semaphore", "-8@%[number] 8@%[text]", [number] "nor"(number), [text] "nor"(text));
}

static __attribute__((noinline)) void ungated(long number) {
  PROBE("t", "ungated", "t_ungated_semaphore", "-8@%[number]", [number] "nor"(number));
}

/* Each in two places, which do not come and go at once. */
static inline __attribute__((always_inline)) void begin(long number) {
  if (t_begin_semaphore != 0) PROBE("t", "begin", "t_begin_semaphore", "-8@%[number]", [number] "nor"(number));
}

static inline __attribute__((always_inline)) void end(long number) {
  if (t_end_semaphore != 0) PROBE("t", "end", "t_end_semaphore", "-8@%[number]", [number] "nor"(number));
}

static __attribute__((noinline)) void paired(long number) {
  begin(number);
  f_hot(number);
  end(number);
}

__attribute__((noinline, noclone, used, visibility("default"))) void f_long(long number) {
  const struct timespec nap = {.tv_nsec = 2500000};
  __asm__ volatile("" : : "r"(number));
  for (int i = 0; i < 45; i++) {
    if (i == 15 || i == 30) nanosleep(&nap, NULL);
    paired(2);
  }
}

static __attribute__((noinline)) void nested(long unused) {
  (void)unused;
  begin(1);
  f_long(1);
  end(1);
}

static long long nanoseconds(clockid_t clock) {
  struct timespec time;
  clock_gettime(clock, &time);
  return time.tv_sec * 1000000000LL + time.tv_nsec;
}

static long for_time(void (*pass)(long), long ms) {
  const long long end = nanoseconds(CLOCK_THREAD_CPUTIME_ID) + ms * 1000000LL;
  long passes = 0;
  do
    for (int i = 0; i < ROUND; i++) pass(passes++);
  while (nanoseconds(CLOCK_THREAD_CPUTIME_ID) < end);
  return passes;
}

static long each;
static void (*each_pass)(long);

static void *pass_all(void *unused) {
  for (long i = 0; i < each; i++) each_pass(i);
  return unused;
}

static long in_threads(void (*pass)(long), int threads, long count) {
  pthread_t all[MAX_THREADS];
  if (threads < 1 || threads > MAX_THREADS) return -1;
  each = count;
  each_pass = pass;
  for (int i = 0; i < threads; i++)
    if (pthread_create(&all[i], NULL, pass_all, NULL) != 0) abort();
  for (int i = 0; i < threads; i++) pthread_join(all[i], NULL);
  return threads * count;
}

static long rate;
static void (*paced_pass)(long);
static volatile int paced;
static long done;
static pthread_t pacer;

/* What is due is done at once, and then it sleeps: who was kept waiting catches up. */
static void *pace(void *unused) {
  const struct timespec nap = {.tv_nsec = 500000};
  const long long start = nanoseconds(CLOCK_MONOTONIC);
  while (paced) {
    const long due = (long)((double)(nanoseconds(CLOCK_MONOTONIC) - start) * (double)rate / 1e9);
    while (done < due) paced_pass(done++);
    nanosleep(&nap, NULL);
  }
  return unused;
}

static void start_pace(void (*pass)(long), long times_a_second) {
  paced_pass = pass;
  rate = times_a_second;
  done = 0;
  paced = 1;
  if (pthread_create(&pacer, NULL, pace, NULL) != 0) abort();
  answer("paced %ld", rate);
}

int main(void) {
  char line[128];
  char *argument;
  memset(text, 't', sizeof text - 1);
  answer("ready");
  while (read_command(line, sizeof line)) {
    if ((argument = argument_of(line, "calls"))) {
      const int threads = (int)strtol(argument, &argument, 10);
      answer("executed %ld", in_threads(f_hot, threads, strtol(argument, NULL, 10)));
    } else if ((argument = argument_of(line, "fires"))) {
      const int threads = (int)strtol(argument, &argument, 10);
      answer("executed %ld", in_threads(gated, threads, strtol(argument, NULL, 10)));
    } else if ((argument = argument_of(line, "call"))) {
      answer("executed %ld", for_time(f_hot, atol(argument)));
    } else if ((argument = argument_of(line, "gated"))) {
      answer("executed %ld", for_time(gated, atol(argument)));
    } else if ((argument = argument_of(line, "ungated"))) {
      answer("executed %ld", for_time(ungated, atol(argument)));
    } else if ((argument = argument_of(line, "paired"))) {
      answer("executed %ld", for_time(paired, atol(argument)));
    } else if ((argument = argument_of(line, "pace"))) {
      start_pace(f_hot, atol(argument));
    } else if ((argument = argument_of(line, "pace-probe"))) {
      start_pace(gated, atol(argument));
    } else if ((argument = argument_of(line, "pace-nested"))) {
      start_pace(nested, atol(argument));
    } else if ((argument = argument_of(line, "stop"))) {
      paced = 0;
      pthread_join(pacer, NULL);
      answer("executed %ld", done);
    } else {
      answer("error unknown command %s", line);
    }
  }
  return 0;
}
