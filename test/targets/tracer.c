/*
 * Another tracer, as plain as can be: registers sites with their counter by perf_event_open, holds them for a moment, closes them, and begins again.
 *
 *   tracer PATH PID COUNTER SITE...    PID -1: in every process; COUNTER and SITEs are offsets in the file
 *
 * Commands:
 *
 *   start SEED    begins
 *   stop          ends with nothing registered; the answer says how many attempts were made, and how many of them the kernel refused
 *
 * A refusal is EINVAL, which is how the kernel says that a site is registered with another counter, or that the counter cannot be raised. Any other error ends the program.
 */
#define _GNU_SOURCE
#include "protocol.h"

#include <errno.h>
#include <linux/perf_event.h>
#include <pthread.h>
#include <stdint.h>
#include <sys/syscall.h>

#define MAX_SITES 16
/* Long enough for others to come meanwhile, short enough for many attempts. */
#define LONGEST_HOLD_US 30000
/* Between two attempts: a while if it had its turn, so that others have theirs, and a moment if it was refused. */
#define LONGEST_REST_US 200000
#define LONGEST_WAIT_US 2000

static struct perf_event_attr attributes = {.size = sizeof attributes, .sample_period = 1};
static pid_t pid;
static uint64_t sites[MAX_SITES];
static int site_count;
static unsigned seed;
static volatile int running;
static long attempts;
static long refused;

static unsigned random_below(unsigned limit) { return (unsigned)rand_r(&seed) % limit; }

static void read_type(void) {
  FILE *file = fopen("/sys/bus/event_source/devices/uprobe/type", "r");
  if (file == NULL || fscanf(file, "%u", &attributes.type) != 1) {
    fprintf(stderr, "tracer: the kernel has no uprobes\n");
    exit(1);
  }
  fclose(file);
}

static int open_site(uint64_t site) {
  attributes.config2 = site;
  int fd = (int)syscall(SYS_perf_event_open, &attributes, pid, pid == -1 ? 0 : -1, -1, PERF_FLAG_FD_CLOEXEC);
  if (fd < 0 && errno != EINVAL) {
    fprintf(stderr, "tracer: perf_event_open: %s\n", strerror(errno));
    exit(1);
  }
  return fd;
}

/* One attempt: the sites from a random one on, up to all of them, or none if one is refused. */
static void attempt(void) {
  int fds[MAX_SITES];
  int count = 0;
  int wanted = 1 + (int)random_below((unsigned)site_count);
  unsigned first = random_below((unsigned)site_count);
  while (count < wanted) {
    fds[count] = open_site(sites[(first + (unsigned)count) % (unsigned)site_count]);
    if (fds[count] < 0) break;
    count++;
  }
  int is_refused = count < wanted;
  attempts++;
  refused += is_refused;
  if (!is_refused) usleep(random_below(LONGEST_HOLD_US));
  while (count > 0) close(fds[--count]);
  usleep(random_below(is_refused ? LONGEST_WAIT_US : LONGEST_REST_US));
}

static void *work(void *unused) {
  while (running) attempt();
  return unused;
}

int main(int count, char **arguments) {
  if (count < 5 || count - 4 > MAX_SITES) return 2;
  read_type();
  attributes.config1 = (uint64_t)(uintptr_t)arguments[1];
  pid = atoi(arguments[2]);
  /* The kernel takes the counter's offset in the upper half of config. */
  attributes.config = strtoull(arguments[3], NULL, 0) << 32;
  for (int i = 4; i < count; i++) sites[site_count++] = strtoull(arguments[i], NULL, 0);
  pthread_t thread;
  answer("ready");
  for (char line[64]; read_command(line, sizeof line);) {
    char *argument = argument_of(line, "start");
    if (argument != NULL) {
      seed = (unsigned)strtoul(argument, NULL, 0);
      running = 1;
      if (pthread_create(&thread, NULL, work, NULL) != 0) abort();
      answer("started");
    } else {
      running = 0;
      pthread_join(thread, NULL);
      answer("attempts %ld refused %ld", attempts, refused);
    }
  }
  return 0;
}
