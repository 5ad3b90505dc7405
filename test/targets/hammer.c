/*
 * Another writer of a counter: sets and clears bit 14 of the 16 bits at an address of a process, without pause. The kernel takes no offence at this bit, since
 * the number stays positive, so that it goes on counting meanwhile.
 *
 *   hammer PID ADDRESS byte    stores the high byte, 0x40 and 0x00 in turn
 *   hammer PID ADDRESS word    reads two bytes, changes the bit, writes two bytes, as tools do that raise the counter by hand
 *
 * Commands:
 *
 *   start     begins
 *   stop      ends with the bit clear; the answer is the number of stores
 */
#define _GNU_SOURCE
#include "protocol.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>

#define BIT_14 0x4000

static int memory;
static off_t address;
static void (*store)(int set);
static volatile int running;
static long stores;

static void check(ssize_t count, ssize_t expected) {
  if (count == expected) return;
  fprintf(stderr, "hammer: the memory could not be reached: %s\n", count < 0 ? strerror(errno) : "it is gone");
  exit(1);
}

/* x86-64 and arm64 are little-endian: the high byte is the second. */
static void store_byte(int set) {
  uint8_t high = set ? BIT_14 >> 8 : 0;
  check(pwrite(memory, &high, 1, address + 1), 1);
}

static void store_word(int set) {
  uint16_t value;
  check(pread(memory, &value, 2, address), 2);
  value = (uint16_t)(set ? value | BIT_14 : value & ~BIT_14);
  check(pwrite(memory, &value, 2, address), 2);
}

static void *hammer(void *unused) {
  for (stores = 0; running; stores += 2) {
    store(1);
    store(0);
  }
  return unused;
}

int main(int count, char **arguments) {
  if (count != 4) return 2;
  char path[64];
  snprintf(path, sizeof path, "/proc/%s/mem", arguments[1]);
  memory = open(path, O_RDWR | O_CLOEXEC);
  if (memory < 0) return 1;
  address = (off_t)strtoull(arguments[2], NULL, 0);
  store = strcmp(arguments[3], "word") == 0 ? store_word : store_byte;
  pthread_t thread;
  answer("ready");
  for (char line[64]; read_command(line, sizeof line);) {
    if (strcmp(line, "start") == 0) {
      running = 1;
      if (pthread_create(&thread, NULL, hammer, NULL) != 0) abort();
      answer("started");
    } else {
      running = 0;
      pthread_join(thread, NULL);
      answer("stores %ld", stores);
    }
  }
  return 0;
}
