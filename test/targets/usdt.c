/*
 * A program with USDT probes of each kind:
 *
 *   t:plain     no semaphore: always fires           -4@index
 *   t:gated     fires only while its semaphore is up -4@index 8@big 8@text
 *   t:ungated   has a semaphore that nobody reads    -4@index
 *   t:shared    three sites, one semaphore           -4@copy -4@index
 *   t:twin      also in the library lib.c            8@text
 *
 * Commands:
 *
 *   plain N, gated N, ungated N, shared N, twin      fire; the answer says how many executed the probe
 *   threads T N         T threads fire t:gated N times each
 *   spin T, spin-stop   T threads fire t:plain until told to stop; the answer is the number of times
 *   fork N              a child fires t:gated N times and ends; the answer says how many executed the probe in it
 *   fork-hold           a child waits; the answer is its pid
 *   fork-release N      it fires t:gated N times and ends
 *   share-hold          a child waits that shares the memory, as after vfork; the answer is its pid
 *   share-release       it ends
 *   exec [PATH]         becomes PATH, or itself anew, which says "ready" again
 *   exec-thread         the same as exec, by a thread other than the leader
 *   leader-exit         the main thread ends, another one goes on with the commands
 *   dlopen PATH, lib N, dlclose   loads lib.c, fires its probes, unloads it
 *   counters            the semaphores as the program reads them: gated ungated shared twin
 *   exit N              ends with this status
 */
#define _GNU_SOURCE
#include "leader.h"
#include "probe.h"
#include "protocol.h"

#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <sys/wait.h>

SEMAPHORE(t_gated_semaphore);
SEMAPHORE(t_ungated_semaphore);
SEMAPHORE(t_shared_semaphore);
SEMAPHORE(t_twin_semaphore);

#define MAX_THREADS 64

static __attribute__((noinline)) void fire_plain(int index) { PROBE("t", "plain", NO_SEMAPHORE, "-4@%[index]", [index] "nor"(index)); }

static __attribute__((noinline)) int fire_gated(int index, uint64_t big, const char *text) {
  if (t_gated_semaphore == 0) return 0;
  PROBE("t", "gated", "t_gated_semaphore", "-4@%[index] 8@%[big] 8@%[text]", [index] "nor"(index), [big] "nor"(big), [text] "nor"(text));
  return 1;
}

static __attribute__((noinline)) void fire_ungated(int index) {
  PROBE("t", "ungated", "t_ungated_semaphore", "-4@%[index]", [index] "nor"(index));
}

static inline __attribute__((always_inline)) int fire_shared(int copy, int index) {
  if (t_shared_semaphore == 0) return 0;
  PROBE("t", "shared", "t_shared_semaphore", "-4@%[copy] -4@%[index]", [copy] "nor"(copy), [index] "nor"(index));
  return 1;
}

static __attribute__((noinline)) int fire_twin(const char *text) {
  if (t_twin_semaphore == 0) return 0;
  PROBE("t", "twin", "t_twin_semaphore", "8@%[text]", [text] "nor"(text));
  return 1;
}

static long gated(long count) {
  long executed = 0;
  char text[32];
  for (long i = 0; i < count; i++) {
    snprintf(text, sizeof text, "hit %ld", i);
    executed += fire_gated((int)-i, UINT64_C(0x8000000000000000) + (uint64_t)i, text);
  }
  return executed;
}

static long shared(long count) {
  long executed = 0;
  for (int i = 0; i < count; i++) {
    executed += fire_shared(0, i);
    executed += fire_shared(1, i);
    executed += fire_shared(2, i);
  }
  return executed;
}

struct worker {
  pthread_t thread;
  long count;
  long executed;
};

static struct worker workers[MAX_THREADS];
static int spinning;
static volatile int spin_on;

static void *run_gated(void *argument) {
  struct worker *worker = argument;
  for (long i = 0; i < worker->count; i++) worker->executed += fire_gated((int)i, (uint64_t)(worker - workers), "threads");
  return NULL;
}

static void *run_spin(void *argument) {
  struct worker *worker = argument;
  for (; spin_on; worker->executed++) fire_plain((int)worker->executed);
  return NULL;
}

static int start_threads(int threads, long count, void *(*run)(void *)) {
  if (threads < 1 || threads > MAX_THREADS) return 0;
  for (int i = 0; i < threads; i++) {
    workers[i] = (struct worker){.count = count};
    if (pthread_create(&workers[i].thread, NULL, run, &workers[i]) != 0) abort();
  }
  return threads;
}

static long join_threads(int threads) {
  long executed = 0;
  for (int i = 0; i < threads; i++) {
    pthread_join(workers[i].thread, NULL);
    executed += workers[i].executed;
  }
  return executed;
}

/* A forked child, and the pipes to release it and to hear from it. */
static struct {
  pid_t pid;
  int release[2];
  int result[2];
} child;

static void fork_hold(void) {
  if (pipe(child.release) != 0 || pipe(child.result) != 0) abort();
  child.pid = fork();
  if (child.pid < 0) abort();
  if (child.pid > 0) {
    close(child.release[0]);
    close(child.result[1]);
    return;
  }
  close(child.release[1]);
  close(child.result[0]);
  long count = 0;
  long executed = read(child.release[0], &count, sizeof count) == sizeof count ? gated(count) : -1;
  _exit(write(child.result[1], &executed, sizeof executed) == sizeof executed ? 0 : 1);
}

static long fork_release(long count) {
  long executed = -1;
  if (write(child.release[1], &count, sizeof count) != sizeof count) abort();
  if (read(child.result[0], &executed, sizeof executed) != sizeof executed) executed = -1;
  waitpid(child.pid, NULL, 0);
  close(child.release[1]);
  close(child.result[0]);
  return executed;
}

static pid_t sharer;

static int wait_for_end(void *unused) {
  (void)unused;
  pause();
  return 0;
}

static void share_hold(void) {
  static _Alignas(16) char stack[64 * 1024];
  sharer = clone(wait_for_end, stack + sizeof stack, CLONE_VM | SIGCHLD, NULL);
  if (sharer < 0) abort();
}

static void share_release(void) {
  kill(sharer, SIGKILL);
  waitpid(sharer, NULL, 0);
}

static char program[4096];
static pthread_t leader;
static void commands(void);

#ifdef STATIC_TARGET
static void load_library(char *path) { answer("error %s: a static program", path); }
static long fire_library(long count) { return -count; }
static void unload_library(void) {}
#else
static void *library;

static void load_library(char *path) {
  library = dlopen(path, RTLD_NOW);
  answer(library == NULL ? "error %s" : "loaded %s", library == NULL ? dlerror() : path);
}

static long fire_library(long count) {
  long (*fire)(long) = (long (*)(long))dlsym(library, "lib_fire");
  return fire == NULL ? -1 : fire(count);
}

static void unload_library(void) { dlclose(library); }
#endif

static void become(const char *path) {
  execl(path, path, (char *)NULL);
  answer("error %s", strerror(errno));
}

static void *become_anew(void *unused) {
  become(program);
  return unused;
}

static void command(char *line) {
  char *argument;
  if ((argument = argument_of(line, "plain"))) {
    long count = atol(argument);
    for (long i = 0; i < count; i++) fire_plain((int)i);
    answer("executed %ld", count);
  } else if ((argument = argument_of(line, "gated"))) {
    answer("executed %ld", gated(atol(argument)));
  } else if ((argument = argument_of(line, "ungated"))) {
    long count = atol(argument);
    for (long i = 0; i < count; i++) fire_ungated((int)i);
    answer("executed %ld", count);
  } else if ((argument = argument_of(line, "shared"))) {
    answer("executed %ld", shared(atol(argument)));
  } else if ((argument = argument_of(line, "twin"))) {
    answer("executed %d", fire_twin("program"));
  } else if ((argument = argument_of(line, "threads"))) {
    int threads = (int)strtol(argument, &argument, 10);
    answer("executed %ld", join_threads(start_threads(threads, strtol(argument, NULL, 10), run_gated)));
  } else if ((argument = argument_of(line, "spin-stop"))) {
    spin_on = 0;
    answer("executed %ld", join_threads(spinning));
  } else if ((argument = argument_of(line, "spin"))) {
    spin_on = 1;
    spinning = start_threads(atoi(argument), 0, run_spin);
    answer("spinning %d", spinning);
  } else if ((argument = argument_of(line, "fork-hold"))) {
    fork_hold();
    answer("child %d", child.pid);
  } else if ((argument = argument_of(line, "fork-release"))) {
    answer("executed %ld", fork_release(atol(argument)));
  } else if ((argument = argument_of(line, "fork"))) {
    fork_hold();
    answer("executed %ld", fork_release(atol(argument)));
  } else if ((argument = argument_of(line, "share-hold"))) {
    share_hold();
    answer("child %d", sharer);
  } else if ((argument = argument_of(line, "share-release"))) {
    share_release();
    answer("ended");
  } else if ((argument = argument_of(line, "exec"))) {
    become(argument[0] == '\0' ? program : argument);
  } else if ((argument = argument_of(line, "exec-thread"))) {
    pthread_t thread;
    if (pthread_create(&thread, NULL, become_anew, NULL) != 0) abort();
    pthread_join(thread, NULL);
  } else if ((argument = argument_of(line, "dlopen"))) {
    load_library(argument);
  } else if ((argument = argument_of(line, "lib"))) {
    answer("executed %ld", fire_library(atol(argument)));
  } else if ((argument = argument_of(line, "dlclose"))) {
    unload_library();
    answer("unloaded");
  } else if ((argument = argument_of(line, "counters"))) {
    answer("%d %d %d %d", t_gated_semaphore, t_ungated_semaphore, t_shared_semaphore, t_twin_semaphore);
  } else if ((argument = argument_of(line, "leader-exit"))) {
    if (!pthread_equal(pthread_self(), leader)) {
      answer("error the leader is gone");
      return;
    }
    leave_to_follower(commands);
  } else if ((argument = argument_of(line, "exit"))) {
    _exit(atoi(argument));
  } else {
    answer("error unknown command %s", line);
  }
}

static void commands(void) {
  char line[4096];
  while (read_command(line, sizeof line)) command(line);
}

int main(void) {
  leader = pthread_self();
  /* In a root without /proc the name stays empty, and `exec` needs a PATH. */
  ssize_t length = readlink("/proc/self/exe", program, sizeof program - 1);
  program[length < 0 ? 0 : length] = '\0';
  answer("ready");
  commands();
  return 0;
}
