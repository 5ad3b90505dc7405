/*
 * A program whose probe points to memory that is not present: mapped, but in no page table.
 *
 *   t:text     -4@number 8@text      always fires
 *   t:number   4@(number)            an operand in memory that is not present
 *
 * Commands:
 *
 *   mapped      fires both with a fresh mapping of this program's file, whose first bytes are those of every ELF file
 *   wait        a thread fires t:text with a page that nobody has filled yet, and waits for it; answers when the kernel has asked for the page
 *   other N     fires t:text N times meanwhile
 *   fill        fills the page with "late"; answers when the thread has ended
 */
#define _GNU_SOURCE
#include "probe.h"
#include "protocol.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>

static const size_t page_bytes = 4096;

static __attribute__((noinline)) void fire_text(int number, const char *text) {
  PROBE("t", "text", NO_SEMAPHORE, "-4@%[number] 8@%[text]", [number] "r"(number), [text] "r"(text));
}

static __attribute__((noinline)) void fire_number(const unsigned *number) {
#ifdef __x86_64__
  PROBE("t", "number", NO_SEMAPHORE, "4@(%[number])", [number] "r"(number));
#else
  PROBE("t", "number", NO_SEMAPHORE, "4@[%[number]]", [number] "r"(number));
#endif
}

static const char *map_program(void) {
  const int fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
  char *file = mmap(NULL, page_bytes, PROT_READ, MAP_PRIVATE, fd, 0);
  if (fd < 0 || file == MAP_FAILED) abort();
  close(fd);
  return file;
}

static struct {
  int userfaultfd;
  char *page;
  pthread_t thread;
} waiting;

static void *fire_waiting(void *unused) {
  (void)unused;
  fire_text(-1, waiting.page);
  return NULL;
}

/* Answers 0 where the kernel does not let this program handle its own page faults. */
static int begin_to_wait(void) {
  waiting.userfaultfd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
  if (waiting.userfaultfd < 0) return 0;
  waiting.page = mmap(NULL, page_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  struct uffdio_api api = {.api = UFFD_API};
  if (waiting.page == MAP_FAILED || ioctl(waiting.userfaultfd, UFFDIO_API, &api) != 0) abort();
  struct uffdio_register range = {.range = {.start = (unsigned long)waiting.page, .len = page_bytes}, .mode = UFFDIO_REGISTER_MODE_MISSING};
  if (ioctl(waiting.userfaultfd, UFFDIO_REGISTER, &range) != 0) abort();
  if (pthread_create(&waiting.thread, NULL, fire_waiting, NULL) != 0) abort();
  struct uffd_msg message;
  return read(waiting.userfaultfd, &message, sizeof message) == sizeof message && message.event == UFFD_EVENT_PAGEFAULT;
}

static void end_waiting(void) {
  static char page[4096] __attribute__((aligned(4096))) = "late";
  struct uffdio_copy copy = {.dst = (unsigned long)waiting.page, .src = (unsigned long)page, .len = page_bytes};
  if (ioctl(waiting.userfaultfd, UFFDIO_COPY, &copy) != 0) abort();
  pthread_join(waiting.thread, NULL);
}

int main(void) {
  char line[256];
  answer("ready");
  while (read_command(line, sizeof line)) {
    const char *argument;
    if (strcmp(line, "mapped") == 0) {
      fire_text(0, map_program() + 1);
      fire_number((const unsigned *)map_program());
      answer("fired");
    } else if (strcmp(line, "wait") == 0) {
      answer(begin_to_wait() ? "waiting" : "impossible");
    } else if ((argument = argument_of(line, "other")) != NULL) {
      for (int i = 0; i < atoi(argument); i++) fire_text(i, "other");
      answer("fired");
    } else if (strcmp(line, "fill") == 0) {
      end_waiting();
      answer("filled");
    } else {
      answer("unknown");
    }
  }
  return 0;
}
