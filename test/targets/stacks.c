/*
 * Known chains of calls, with frame pointers: every function below main is there under its name, and calls the next one as the name says.
 *
 *   chain N      main > command > chain_a > chain_b > chain_c > leaf, N times
 *   ways N       the same N times by way of way_left and N times by way of way_right
 *   recurse N    main > command > dive (N times) > leaf, once
 *   depths N     recurse 1, recurse 2 … recurse N
 *   usdt N       main > command > middle, where the probe s:middle is, N times
 *   signal       a handler, on_signal, that calls leaf
 *   threads T N  T threads run chain N at once
 *   fault        main > command > way_present > text("present") while another thread, on the same CPU, is on the way thread_main_absent > way_absent > text(PAGE), and waits for
 *                PAGE to be filled with "absent"; "failed" where that cannot be arranged
 *   again        becomes the same program once more, by exec, and says "ready" again
 *   load PATH    loads a library of ours (stacks-lib.c)
 *   through N    main > command > lib_outer > lib_hidden > back > leaf, N times
 */
#pragma GCC optimize("no-omit-frame-pointer", "no-optimize-sibling-calls")
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <dlfcn.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "probe.h"
#include "protocol.h"

#define FUNCTION __attribute__((noinline, noclone, used))
/* Keeps the compiler from merging or reordering what stands around it. */
#define BARRIER __asm__ volatile("" ::: "memory")

FUNCTION void leaf(void) { BARRIER; }

FUNCTION void chain_c(void) {
  leaf();
  BARRIER;
}
FUNCTION void chain_b(void) {
  chain_c();
  BARRIER;
}
FUNCTION void chain_a(void) {
  chain_b();
  BARRIER;
}
FUNCTION void way_left(void) {
  leaf();
  BARRIER;
}
FUNCTION void way_right(void) {
  leaf();
  BARRIER;
}
FUNCTION void dive(int depth) {
  if (depth > 1) dive(depth - 1);
  else leaf();
  BARRIER;
}
FUNCTION void middle(int n) {
  /* Without this the compiler makes no frame for a function that calls nobody, whatever it was told. */
  void *volatile frame = __builtin_frame_address(0);
  (void)frame;
  PROBE("s", "middle", NO_SEMAPHORE, "-4@%[n]", [n] "nor"(n));
  BARRIER;
}
FUNCTION void back(void) {
  leaf();
  BARRIER;
}

static void on_signal(int number) {
  (void)number;
  leaf();
  BARRIER;
}

static long thread_hits;

FUNCTION void *thread_main(void *unused) {
  (void)unused;
  for (long i = 0; i < thread_hits; i++) chain_a();
  return NULL;
}

FUNCTION char text(const char *string) {
  BARRIER;
  return *(volatile const char *)string;
}
FUNCTION void way_present(const char *string) {
  text(string);
  BARRIER;
}
FUNCTION void way_absent(const char *string) {
  text(string);
  BARRIER;
}
FUNCTION void *thread_main_absent(void *page) {
  way_absent(page);
  BARRIER;
  return NULL;
}

/* userfaultfd(2): whoever touches the page, the kernel on its behalf included, sleeps until it is filled. */
FUNCTION int fault(void) {
  static char source[65536] __attribute__((aligned(65536))) = "absent";
  size_t size = (size_t)sysconf(_SC_PAGESIZE);
  cpu_set_t all, one;
  pthread_t thread;
  int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
  char *page = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  struct uffdio_api api = {.api = UFFD_API};
  struct uffdio_register range = {.range = {(uintptr_t)page, size}, .mode = UFFDIO_REGISTER_MODE_MISSING};
  struct uffdio_copy copy = {.dst = (uintptr_t)page, .src = (uintptr_t)source, .len = size};
  struct pollfd waits = {.fd = fd, .events = POLLIN};
  if (fd < 0 || page == MAP_FAILED || ioctl(fd, UFFDIO_API, &api) || ioctl(fd, UFFDIO_REGISTER, &range)) return -1;
  sched_getaffinity(0, sizeof all, &all);
  CPU_ZERO(&one);
  for (int cpu = 0; cpu < CPU_SETSIZE && !CPU_COUNT(&one); cpu++)
    if (CPU_ISSET(cpu, &all)) CPU_SET(cpu, &one);
  /* The thread inherits it. */
  if (sched_setaffinity(0, sizeof one, &one) || pthread_create(&thread, NULL, thread_main_absent, page)) return -1;
  poll(&waits, 1, -1);
  way_present("present");
  ioctl(fd, UFFDIO_COPY, &copy);
  pthread_join(thread, NULL);
  sched_setaffinity(0, sizeof all, &all);
  close(fd);
  return 0;
}

#ifndef STATIC_TARGET
static void (*lib_outer)(void (*)(void));
#endif

FUNCTION void command(char *line) {
  char *argument;
  if ((argument = argument_of(line, "chain"))) {
    long count = atol(argument);
    for (long i = 0; i < count; i++) chain_a();
    answer("executed %ld", count);
  } else if ((argument = argument_of(line, "ways"))) {
    long count = atol(argument);
    for (long i = 0; i < count; i++) {
      way_left();
      way_right();
    }
    answer("executed %ld", 2 * count);
  } else if ((argument = argument_of(line, "recurse"))) {
    dive(atoi(argument));
    answer("executed 1");
  } else if ((argument = argument_of(line, "depths"))) {
    int count = atoi(argument);
    for (int depth = 1; depth <= count; depth++) dive(depth);
    answer("executed %d", count);
  } else if ((argument = argument_of(line, "usdt"))) {
    int count = atoi(argument);
    for (int i = 0; i < count; i++) middle(i);
    answer("executed %d", count);
  } else if ((argument = argument_of(line, "signal"))) {
    signal(SIGUSR1, on_signal);
    raise(SIGUSR1);
    answer("executed 1");
  } else if ((argument = argument_of(line, "threads"))) {
    pthread_t threads[64];
    int count = (int)strtol(argument, &argument, 10);
    thread_hits = strtol(argument, NULL, 10);
    for (int i = 0; i < count; i++) pthread_create(&threads[i], NULL, thread_main, NULL);
    for (int i = 0; i < count; i++) pthread_join(threads[i], NULL);
    answer("executed %ld", count * thread_hits);
  } else if ((argument = argument_of(line, "fault"))) {
    if (fault()) answer("failed");
    else answer("executed 2");
  } else if ((argument = argument_of(line, "again"))) {
    execl("/proc/self/exe", "stacks", (char *)NULL);
    answer("failed");
#ifndef STATIC_TARGET
  } else if ((argument = argument_of(line, "load"))) {
    void *library = dlopen(argument, RTLD_NOW);
    *(void **)&lib_outer = library == NULL ? NULL : dlsym(library, "lib_outer");
    answer(lib_outer == NULL ? "failed" : "loaded");
  } else if ((argument = argument_of(line, "through"))) {
    long count = atol(argument);
    for (long i = 0; i < count; i++) lib_outer(back);
    answer("executed %ld", count);
#endif
  } else {
    answer("unknown");
  }
  BARRIER;
}

int main(void) {
  char line[4096];
  answer("ready");
  while (read_command(line, sizeof line)) command(line);
  return 0;
}
