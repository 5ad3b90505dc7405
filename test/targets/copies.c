/*
 * A program that maps code with probes more than once:
 *
 *   t:mapped    one site, whose semaphore is `mapped_semaphore`; the answer to a command has its value as the program reads it
 *
 * Commands:
 *
 *   map           maps the program's own file once more, private and read-only, as libraries do that read symbols
 *   load PATH     loads lib.c into a namespace of the loader of its own: a copy beside those that there are
 *   fire N        fires the probes of every copy N times; the answer says how many executed them in each
 */
#define _GNU_SOURCE
#include "probe.h"
#include "protocol.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

SEMAPHORE(mapped_semaphore);

#define MAX_COPIES 4

static void *copies[MAX_COPIES];
static int loaded;

static __attribute__((noinline)) void fire_mapped(int index) { PROBE("t", "mapped", "mapped_semaphore", "-4@%[index]", [index] "nor"(index)); }

static void map_itself(void) {
  int file = open("/proc/self/exe", O_RDONLY);
  struct stat stat;
  if (file < 0 || fstat(file, &stat) != 0 || mmap(NULL, stat.st_size, PROT_READ, MAP_PRIVATE, file, 0) == MAP_FAILED) abort();
  close(file);
}

static long fire_copy(void *copy, long count) {
  long (*fire)(long) = (long (*)(long))dlsym(copy, "lib_fire");
  return fire == NULL ? -1 : fire(count);
}

int main(void) {
  char line[4096];
  char *argument;
  answer("ready");
  while (read_command(line, sizeof line)) {
    if (argument_of(line, "map")) {
      map_itself();
      answer("mapped %d", mapped_semaphore);
    } else if ((argument = argument_of(line, "load")) && loaded < MAX_COPIES) {
      copies[loaded] = dlmopen(LM_ID_NEWLM, argument, RTLD_NOW);
      if (copies[loaded] == NULL) answer("error %s", dlerror());
      else answer("loaded %d", ++loaded);
    } else if ((argument = argument_of(line, "fire"))) {
      long count = atol(argument);
      long executed[MAX_COPIES] = {0};
      for (int i = 0; i < count; i++) fire_mapped(i);
      for (int i = 0; i < loaded; i++) executed[i] = fire_copy(copies[i], count);
      answer("executed %ld %ld", executed[0], executed[1]);
    } else {
      answer("error unknown command %s", line);
    }
  }
  return 0;
}
