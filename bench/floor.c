/*
 * What tracing costs without any library: the system calls that the package makes, made from C and nothing else.
 *
 *   floor count PATH OFFSET PID      a bare perf event that counts
 *   floor empty PATH OFFSET PID      a BPF program that only returns
 *   floor ints PATH OFFSET PID       one that writes two int arguments into a ring
 *   floor text PATH OFFSET PID       and a string of up to 64 bytes
 *   floor tally PATH OFFSET PID      one that counts in a per-CPU array
 *   floor filter PATH OFFSET PID     that, and rejects the hit by its first argument
 *   floor histogram PATH OFFSET PID  one that counts the first argument by its power of two
 *   floor pair PATH OFFSET PID OFFSET  two programs: the time from one site to the other, by thread, counted by its power of two
 *   floor stack PATH OFFSET PID      one that stores the user's stack, each only once
 *       Says "ready", holds the probe until its input ends, and never wakes anybody for a hit.
 *
 *   floor wake PATH OFFSET PID       one that writes two arguments into a ring, and wakes us if we have read all that was before
 *       Says "ready". Answers each line, a number of hits, when it has seen so many more: half of them, and 99 of a hundred, took at most so many nanoseconds from the time in the record until they were read.
 *
 *   floor perf PATH PID OFFSET...    registers a perf event for each offset, each with a BPF program, and closes them
 *   floor multi PATH PID OFFSET...   the same through one uprobe_multi link
 *   floor whole PATH PID OFFSET...   that, with all the other calls that make an attach: they read the process, its file and the notes in it, make a map, load a program, and read back what is armed
 *       Answers with the nanoseconds until all are registered, and those until all are gone. An OFFSET may be followed by that of its counter, as OFFSET:COUNTER.
 */
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/perf_event.h>
#include <poll.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define RING_BYTES (8 << 20)
#define MAX_SITES 16384
#define TEXT_BYTES 64
#define MAX_LATENCIES (1 << 20)

static void check(int ok, const char *call) {
  if (ok) return;
  fprintf(stderr, "%s: %s\n", call, strerror(errno));
  exit(1);
}

/* --- BPF: the few instructions that are needed, named as in the kernel's own samples --- */

typedef struct bpf_insn insn;

#define MOV_REG(dst, src) ((insn){.code = BPF_ALU64 | BPF_MOV | BPF_X, .dst_reg = dst, .src_reg = src})
#define MOV_IMM(dst, value) ((insn){.code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = dst, .imm = value})
#define ADD_IMM(dst, value) ((insn){.code = BPF_ALU64 | BPF_ADD | BPF_K, .dst_reg = dst, .imm = value})
#define LOAD(dst, src, offset) ((insn){.code = BPF_LDX | BPF_MEM | BPF_DW, .dst_reg = dst, .src_reg = src, .off = offset})
#define STORE(dst, offset, src) ((insn){.code = BPF_STX | BPF_MEM | BPF_DW, .dst_reg = dst, .src_reg = src, .off = offset})
#define SUB_REG(dst, src) ((insn){.code = BPF_ALU64 | BPF_SUB | BPF_X, .dst_reg = dst, .src_reg = src})
#define SHIFT_RIGHT(dst, bits) ((insn){.code = BPF_ALU64 | BPF_RSH | BPF_K, .dst_reg = dst, .imm = bits})
#define STORE_WORD(dst, offset, src) ((insn){.code = BPF_STX | BPF_MEM | BPF_W, .dst_reg = dst, .src_reg = src, .off = offset})
#define STORE_IMM(dst, offset, value) ((insn){.code = BPF_ST | BPF_MEM | BPF_W, .dst_reg = dst, .off = offset, .imm = value})
#define ATOMIC_ADD(dst, offset, src) ((insn){.code = BPF_STX | BPF_ATOMIC | BPF_DW, .dst_reg = dst, .src_reg = src, .off = offset, .imm = BPF_ADD})
#define TRUNCATE(reg) ((insn){.code = BPF_ALU | BPF_MOV | BPF_X, .dst_reg = reg, .src_reg = reg})
#define JUMP_IF_LESS(reg, value, insns) ((insn){.code = BPF_JMP | BPF_JLT | BPF_K, .dst_reg = reg, .imm = value, .off = insns})
#define JUMP_IF_ZERO(reg, insns) ((insn){.code = BPF_JMP | BPF_JEQ | BPF_K, .dst_reg = reg, .off = insns})
#define CALL(helper) ((insn){.code = BPF_JMP | BPF_CALL, .imm = helper})
#define EXIT ((insn){.code = BPF_JMP | BPF_EXIT})
/* Two instructions: the address of the map. */
#define LOAD_MAP(dst, fd) ((insn){.code = BPF_LD | BPF_DW | BPF_IMM, .dst_reg = dst, .src_reg = BPF_PSEUDO_MAP_FD, .imm = fd}), ((insn){0})

/* Offsets of the first three arguments in pt_regs. */
#if defined(__x86_64__)
enum { ARGUMENT_0 = 112, ARGUMENT_1 = 104, ARGUMENT_2 = 96 };
#elif defined(__aarch64__)
enum { ARGUMENT_0 = 0, ARGUMENT_1 = 8, ARGUMENT_2 = 16 };
#else
#error "the benchmarks are written for x86-64 and arm64"
#endif

/* What Linux 6.6 added to union bpf_attr for BPF_LINK_CREATE; the headers of the build machine may be older. */
struct link_create_multi {
  uint32_t prog_fd, target_fd, attach_type, flags;
  uint64_t path, offsets, ref_ctr_offsets, cookies;
  uint32_t count, multi_flags, pid, padding;
};
enum { TRACE_UPROBE_MULTI = 48 };

static int bpf(int command, void *attr, size_t bytes) { return (int)syscall(SYS_bpf, command, attr, bytes); }

static int create_ring(void) {
  union bpf_attr attr = {.map_type = BPF_MAP_TYPE_RINGBUF, .max_entries = RING_BYTES};
  int fd = bpf(BPF_MAP_CREATE, &attr, sizeof attr);
  check(fd >= 0, "BPF_MAP_CREATE");
  return fd;
}

static int load(const insn *insns, size_t count, int attach_type) {
  union bpf_attr attr = {
      .prog_type = BPF_PROG_TYPE_KPROBE,
      .expected_attach_type = attach_type,
      .insns = (uint64_t)insns,
      .insn_cnt = (uint32_t)count,
      .license = (uint64_t) "Dual MIT/GPL",
  };
  int fd = bpf(BPF_PROG_LOAD, &attr, sizeof attr);
  check(fd >= 0, "BPF_PROG_LOAD");
  return fd;
}

#define LOAD_PROGRAM(insns, attach_type) load(insns, sizeof(insns) / sizeof *(insns), attach_type)

static int empty_program(int attach_type) {
  const insn insns[] = {MOV_IMM(BPF_REG_0, 0), EXIT};
  return LOAD_PROGRAM(insns, attach_type);
}

/* A record: time, thread, two arguments; then, for `text`, 64 bytes of string. */
enum { AT_TIME = 0, AT_THREAD = 8, AT_A = 16, AT_B = 24, AT_TEXT = 32 };

#define RESERVE(ring, bytes) LOAD_MAP(BPF_REG_1, ring), MOV_IMM(BPF_REG_2, bytes), MOV_IMM(BPF_REG_3, 0), CALL(BPF_FUNC_ringbuf_reserve)
#define FILL                                                                                         \
  MOV_REG(BPF_REG_7, BPF_REG_0), CALL(BPF_FUNC_ktime_get_ns), STORE(BPF_REG_7, AT_TIME, BPF_REG_0),  \
      CALL(BPF_FUNC_get_current_pid_tgid), STORE(BPF_REG_7, AT_THREAD, BPF_REG_0),                   \
      LOAD(BPF_REG_1, BPF_REG_6, ARGUMENT_0), STORE(BPF_REG_7, AT_A, BPF_REG_1),                     \
      LOAD(BPF_REG_1, BPF_REG_6, ARGUMENT_1), STORE(BPF_REG_7, AT_B, BPF_REG_1)
enum { FILL_INSNS = 9 };
#define READ_TEXT                                                                                    \
  MOV_REG(BPF_REG_1, BPF_REG_7), ADD_IMM(BPF_REG_1, AT_TEXT), MOV_IMM(BPF_REG_2, TEXT_BYTES),        \
      LOAD(BPF_REG_3, BPF_REG_6, ARGUMENT_2), CALL(BPF_FUNC_probe_read_user_str)
enum { READ_TEXT_INSNS = 5 };
#define SUBMIT(flags) MOV_REG(BPF_REG_1, BPF_REG_7), MOV_IMM(BPF_REG_2, flags), CALL(BPF_FUNC_ringbuf_submit)
enum { SUBMIT_INSNS = 3 };

static int ints_program(int ring, int attach_type, int wake_up) {
  const insn insns[] = {
      MOV_REG(BPF_REG_6, BPF_REG_1), RESERVE(ring, AT_TEXT), JUMP_IF_ZERO(BPF_REG_0, FILL_INSNS + SUBMIT_INSNS), FILL, SUBMIT(wake_up),
      MOV_IMM(BPF_REG_0, 0),         EXIT,
  };
  return LOAD_PROGRAM(insns, attach_type);
}

static int text_program(int ring) {
  const insn insns[] = {
      MOV_REG(BPF_REG_6, BPF_REG_1),
      RESERVE(ring, AT_TEXT + TEXT_BYTES),
      JUMP_IF_ZERO(BPF_REG_0, FILL_INSNS + READ_TEXT_INSNS + SUBMIT_INSNS),
      FILL,
      READ_TEXT,
      SUBMIT(BPF_RB_NO_WAKEUP),
      MOV_IMM(BPF_REG_0, 0),
      EXIT,
  };
  return LOAD_PROGRAM(insns, 0);
}

static int create_map(uint32_t type, uint32_t key_bytes, uint32_t value_bytes, uint32_t entries) {
  union bpf_attr attr = {.map_type = type, .key_size = key_bytes, .value_size = value_bytes, .max_entries = entries};
  int fd = bpf(BPF_MAP_CREATE, &attr, sizeof attr);
  check(fd >= 0, "BPF_MAP_CREATE");
  return fd;
}

/* The stack of a program: a map's key, and a number. */
enum { KEY = -8, NUMBER = -16 };

#define LOOK_UP(map) LOAD_MAP(BPF_REG_1, map), MOV_REG(BPF_REG_2, BPF_REG_10), ADD_IMM(BPF_REG_2, KEY), CALL(BPF_FUNC_map_lookup_elem)
/* Adds one to entry KEY of an array. */
#define ADD_ONE(map) LOOK_UP(map), JUMP_IF_ZERO(BPF_REG_0, 2), MOV_IMM(BPF_REG_1, 1), ATOMIC_ADD(BPF_REG_0, 0, BPF_REG_1)
#define HALVE(bits) JUMP_IF_LESS(BPF_REG_1, INT32_C(1) << (bits), 2), SHIFT_RIGHT(BPF_REG_1, bits), ADD_IMM(BPF_REG_2, bits)
/* KEY = the power of two of r1, which is below 2^32 */
#define LOG2_TO_KEY MOV_IMM(BPF_REG_2, 0), HALVE(16), HALVE(8), HALVE(4), HALVE(2), HALVE(1), STORE_WORD(BPF_REG_10, KEY, BPF_REG_2)
#define LEAVE MOV_IMM(BPF_REG_0, 0), EXIT

static int tally_program(void) {
  int counts = create_map(BPF_MAP_TYPE_PERCPU_ARRAY, 4, 8, 1);
  const insn insns[] = {STORE_IMM(BPF_REG_10, KEY, 0), ADD_ONE(counts), LEAVE};
  return LOAD_PROGRAM(insns, 0);
}

static int filter_program(void) {
  int counts = create_map(BPF_MAP_TYPE_PERCPU_ARRAY, 4, 16, 1);
  const insn insns[] = {
      MOV_REG(BPF_REG_6, BPF_REG_1),
      STORE_IMM(BPF_REG_10, KEY, 0),
      LOOK_UP(counts),
      JUMP_IF_ZERO(BPF_REG_0, 8),
      MOV_IMM(BPF_REG_1, 1),
      ATOMIC_ADD(BPF_REG_0, 0, BPF_REG_1),
      LOAD(BPF_REG_2, BPF_REG_6, ARGUMENT_0),
      TRUNCATE(BPF_REG_2),
      JUMP_IF_LESS(BPF_REG_2, INT32_MAX, 2),
      LEAVE,
      ATOMIC_ADD(BPF_REG_0, 8, BPF_REG_1),
      LEAVE,
  };
  return LOAD_PROGRAM(insns, 0);
}

static int histogram_program(void) {
  int counts = create_map(BPF_MAP_TYPE_PERCPU_ARRAY, 4, 8, 64);
  const insn insns[] = {LOAD(BPF_REG_1, BPF_REG_1, ARGUMENT_0), TRUNCATE(BPF_REG_1), LOG2_TO_KEY, ADD_ONE(counts), LEAVE};
  return LOAD_PROGRAM(insns, 0);
}

static int start_program(int starts) {
  const insn insns[] = {
      CALL(BPF_FUNC_get_current_pid_tgid), STORE(BPF_REG_10, KEY, BPF_REG_0),    CALL(BPF_FUNC_ktime_get_ns), STORE(BPF_REG_10, NUMBER, BPF_REG_0),
      LOAD_MAP(BPF_REG_1, starts),         MOV_REG(BPF_REG_2, BPF_REG_10),       ADD_IMM(BPF_REG_2, KEY),     MOV_REG(BPF_REG_3, BPF_REG_10),
      ADD_IMM(BPF_REG_3, NUMBER),          MOV_IMM(BPF_REG_4, BPF_ANY),          CALL(BPF_FUNC_map_update_elem), LEAVE,
  };
  return LOAD_PROGRAM(insns, 0);
}

static int done_program(int starts) {
  int counts = create_map(BPF_MAP_TYPE_PERCPU_ARRAY, 4, 8, 64);
  const insn insns[] = {
      CALL(BPF_FUNC_get_current_pid_tgid),
      STORE(BPF_REG_10, KEY, BPF_REG_0),
      LOOK_UP(starts),
      JUMP_IF_ZERO(BPF_REG_0, 36),
      LOAD(BPF_REG_6, BPF_REG_0, 0),
      CALL(BPF_FUNC_ktime_get_ns),
      SUB_REG(BPF_REG_0, BPF_REG_6),
      MOV_REG(BPF_REG_6, BPF_REG_0),
      TRUNCATE(BPF_REG_6),
      LOAD_MAP(BPF_REG_1, starts),
      MOV_REG(BPF_REG_2, BPF_REG_10),
      ADD_IMM(BPF_REG_2, KEY),
      CALL(BPF_FUNC_map_delete_elem),
      MOV_REG(BPF_REG_1, BPF_REG_6),
      LOG2_TO_KEY,
      ADD_ONE(counts),
      LEAVE,
  };
  return LOAD_PROGRAM(insns, 0);
}

static int stack_program(void) {
  int stacks = create_map(BPF_MAP_TYPE_STACK_TRACE, 4, 127 * 8, 1024);
  int counts = create_map(BPF_MAP_TYPE_PERCPU_ARRAY, 4, 8, 1024);
  const insn insns[] = {
      LOAD_MAP(BPF_REG_2, stacks),
      MOV_IMM(BPF_REG_3, BPF_F_USER_STACK),
      CALL(BPF_FUNC_get_stackid),
      STORE_WORD(BPF_REG_10, KEY, BPF_REG_0),
      ADD_ONE(counts),
      LEAVE,
  };
  return LOAD_PROGRAM(insns, 0);
}

/* Empties the ring every 5 ms by throwing everything away: the consumer's position is all that the kernel looks at. */
static void *discard(void *argument) {
  int fd = *(int *)argument;
  size_t page = (size_t)sysconf(_SC_PAGESIZE);
  unsigned long *consumer = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  unsigned long *producer = mmap(NULL, page, PROT_READ, MAP_SHARED, fd, (off_t)page);
  check(consumer != MAP_FAILED && producer != MAP_FAILED, "mmap");
  for (;;) {
    /* These pair with the store of producer_pos and the load of consumer_pos in __bpf_ringbuf_reserve, kernel/bpf/ringbuf.c. */
    __atomic_store_n(consumer, __atomic_load_n(producer, __ATOMIC_ACQUIRE), __ATOMIC_RELEASE);
    usleep(5000);
  }
  return NULL;
}

/* --- perf events --- */

static uint32_t uprobe_type(void) {
  FILE *file = fopen("/sys/bus/event_source/devices/uprobe/type", "r");
  check(file != NULL, "open the type of the uprobe PMU");
  uint32_t type;
  check(fscanf(file, "%u", &type) == 1, "read the type of the uprobe PMU");
  fclose(file);
  return type;
}

static int open_counted_probe(uint32_t type, const char *path, uint64_t offset, uint64_t counter, pid_t pid) {
  struct perf_event_attr attr = {.type = type, .size = sizeof attr, .config = counter << 32, .config1 = (uint64_t)path, .config2 = offset};
  int fd = (int)syscall(SYS_perf_event_open, &attr, pid, -1, -1, PERF_FLAG_FD_CLOEXEC);
  check(fd >= 0, "perf_event_open");
  return fd;
}

static int open_probe(uint32_t type, const char *path, uint64_t offset, pid_t pid) { return open_counted_probe(type, path, offset, 0, pid); }

static void set_program(int event, int program) { check(ioctl(event, PERF_EVENT_IOC_SET_BPF, program) == 0, "PERF_EVENT_IOC_SET_BPF"); }

static void hold(const char *mode, const char *path, uint64_t offset, pid_t pid, uint64_t second) {
  static int ring = -1;
  int program = -1;
  if (strcmp(mode, "empty") == 0) {
    program = empty_program(0);
  } else if (strcmp(mode, "tally") == 0) {
    program = tally_program();
  } else if (strcmp(mode, "filter") == 0) {
    program = filter_program();
  } else if (strcmp(mode, "histogram") == 0) {
    program = histogram_program();
  } else if (strcmp(mode, "stack") == 0) {
    program = stack_program();
  } else if (strcmp(mode, "pair") == 0) {
    int starts = create_map(BPF_MAP_TYPE_HASH, 8, 8, 4096);
    program = start_program(starts);
    set_program(open_probe(uprobe_type(), path, second, pid), done_program(starts));
  } else if (strcmp(mode, "count") != 0) {
    ring = create_ring();
    program = strcmp(mode, "text") == 0 ? text_program(ring) : ints_program(ring, 0, BPF_RB_NO_WAKEUP);
    pthread_t thread;
    check(pthread_create(&thread, NULL, discard, &ring) == 0, "pthread_create");
  }
  int event = open_probe(uprobe_type(), path, offset, pid);
  if (program >= 0) set_program(event, program);
  puts("ready");
  fflush(stdout);
  while (getchar() != EOF) continue;
}

static int64_t now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

// Waits 60 to 72 ms, as attach.ts does before it attaches or detaches, and says why.
static void wait_for_any_moment(void) { usleep((useconds_t)(60000 + now_ns() / 7 % 12000)); }

static int by_value(const void *a, const void *b) {
  int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
  return (x > y) - (x < y);
}

/* What took how long, since it was reported last. */
static int64_t latencies[MAX_LATENCIES];
static long latency_count;

static void report_latencies(void) {
  qsort(latencies, (size_t)latency_count, sizeof *latencies, by_value);
  printf("%lld %lld\n", (long long)latencies[latency_count / 2], (long long)latencies[latency_count * 99 / 100]);
  fflush(stdout);
  latency_count = 0;
}

/* Reads a ring up to what has been written by now. */
static void read_ring(const uint8_t *data, unsigned long *consumer, const unsigned long *producer) {
  unsigned long at = *consumer, end = __atomic_load_n(producer, __ATOMIC_ACQUIRE);
  while (at < end) {
    const uint8_t *head = data + (at & (RING_BYTES - 1));
    uint32_t bytes = __atomic_load_n((const uint32_t *)head, __ATOMIC_ACQUIRE);
    if (bytes & BPF_RINGBUF_BUSY_BIT) break;
    int64_t time;
    memcpy(&time, head + BPF_RINGBUF_HDR_SZ + AT_TIME, sizeof time);
    if (latency_count < MAX_LATENCIES) latencies[latency_count++] = now_ns() - time;
    at += (bytes + BPF_RINGBUF_HDR_SZ + 7) & ~7ul;
    /* Each by itself, so that the kernel sees whether we have caught up with the next. */
    __atomic_store_n(consumer, at, __ATOMIC_SEQ_CST);
  }
}

static void time_wake_ups(const char *path, uint64_t offset, pid_t pid) {
  int ring = create_ring();
  size_t page = (size_t)sysconf(_SC_PAGESIZE);
  unsigned long *consumer = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_SHARED, ring, 0);
  unsigned long *producer = mmap(NULL, page + 2 * RING_BYTES, PROT_READ, MAP_SHARED, ring, (off_t)page);
  check(consumer != MAP_FAILED && producer != MAP_FAILED, "mmap");
  set_program(open_probe(uprobe_type(), path, offset, pid), ints_program(ring, 0, 0));
  puts("ready");
  fflush(stdout);
  long wanted = 0;
  struct pollfd sources[] = {{.fd = ring, .events = POLLIN}, {.fd = STDIN_FILENO, .events = POLLIN}};
  while (poll(sources, 2, -1) >= 0) {
    read_ring((const uint8_t *)producer + page, consumer, producer);
    if (sources[1].revents != 0) {
      char line[64];
      if (fgets(line, sizeof line, stdin) == NULL) return;
      wanted = atol(line);
    }
    if (wanted > 0 && latency_count >= wanted) {
      report_latencies();
      wanted = 0;
    }
  }
}

static void report(int64_t attach, int64_t detach) { printf("%lld %lld\n", (long long)attach, (long long)detach); }

static void time_perf(const char *path, pid_t pid, const uint64_t *offsets, const uint64_t *counters, int count) {
  static int events[MAX_SITES];
  int program = empty_program(0);
  uint32_t type = uprobe_type();
  wait_for_any_moment();
  int64_t start = now_ns();
  for (int i = 0; i < count; i++) {
    events[i] = open_counted_probe(type, path, offsets[i], counters[i], pid);
    set_program(events[i], program);
  }
  int64_t attach = now_ns() - start;
  wait_for_any_moment();
  start = now_ns();
  for (int i = 0; i < count; i++) close(events[i]);
  report(attach, now_ns() - start);
}

static int create_link(int program, const char *path, pid_t pid, const uint64_t *offsets, const uint64_t *counters, const uint64_t *cookies, int count) {
  struct link_create_multi attr = {
      .prog_fd = (uint32_t)program,
      .attach_type = TRACE_UPROBE_MULTI,
      .path = (uint64_t)path,
      .offsets = (uint64_t)offsets,
      .ref_ctr_offsets = (uint64_t)counters,
      .cookies = (uint64_t)cookies,
      .count = (uint32_t)count,
      .pid = (uint32_t)pid,
  };
  int link = bpf(BPF_LINK_CREATE, &attr, offsetof(struct link_create_multi, padding));
  check(link >= 0, "BPF_LINK_CREATE");
  return link;
}

static void report_closing(int link, int64_t attach) {
  wait_for_any_moment();
  int64_t start = now_ns();
  close(link);
  report(attach, now_ns() - start);
}

static void time_multi(const char *path, pid_t pid, const uint64_t *offsets, const uint64_t *counters, int count) {
  int program = empty_program(TRACE_UPROBE_MULTI);
  wait_for_any_moment();
  int64_t start = now_ns();
  int link = create_link(program, path, pid, offsets, counters, NULL, count);
  report_closing(link, now_ns() - start);
}

/*
 * --- An attach with all that is read for it. What is read is used for nothing, but to know what to read next. ---
 *
 * The package does somewhat more: it looks for leases, has the link made by a process of its own, looks at what each mapping is that may be the file, watches the pidfd, and its program is three times as long.
 */

#define PAGE_BYTES UINT64_C(4096)
#define WINDOW_BYTES (32 << 10)
#define MAX_SECTIONS 64
#define MAX_MAPPINGS 64

static char scratch[16 << 20];

struct mapping {
  uint64_t start, end, offset;
  char permissions[5];
};
static struct mapping mappings[MAX_MAPPINGS];
static int mapping_count;

static int open_of(pid_t pid, const char *name, int flags) {
  char path[96];
  snprintf(path, sizeof path, "/proc/%d/%s", pid, name);
  int fd = open(path, flags | O_CLOEXEC);
  check(fd >= 0, path);
  return fd;
}

static void read_of(pid_t pid, const char *name) {
  int fd = open_of(pid, name, O_RDONLY);
  size_t got = 0;
  for (ssize_t bytes; (bytes = read(fd, scratch + got, 16 << 10)) > 0;) got += (size_t)bytes;
  scratch[got] = 0;
  close(fd);
}

/* Reads the mappings, keeps those of the file, and looks at what it is that is mapped. */
static void read_mappings(pid_t pid, const struct stat *file) {
  read_of(pid, "maps");
  mapping_count = 0;
  for (char *line = scratch; line != NULL && mapping_count < MAX_MAPPINGS; line = strchr(line, '\n') == NULL ? NULL : strchr(line, '\n') + 1) {
    struct mapping *mapping = &mappings[mapping_count];
    uint64_t inode = 0;
    int fields = sscanf(line, "%lx-%lx %4s %lx %*s %lu", &mapping->start, &mapping->end, mapping->permissions, &mapping->offset, &inode);
    if (fields == 5 && inode == file->st_ino) mapping_count++;
  }
  check(mapping_count > 0, "mappings");
  char name[64];
  struct stat mapped;
  snprintf(name, sizeof name, "/proc/%d/map_files/%lx-%lx", pid, mappings[0].start, mappings[0].end);
  check(stat(name, &mapped) == 0, name);
}

/* What tells when the process calls exec. */
static void open_watch(pid_t pid) {
  struct perf_event_attr attr = {.type = PERF_TYPE_SOFTWARE, .size = sizeof attr, .config = PERF_COUNT_SW_DUMMY, .watermark = 1, .comm_exec = 1, .comm = 1, .task = 1};
  check(syscall(SYS_perf_event_open, &attr, pid, -1, -1, PERF_FLAG_FD_CLOEXEC) >= 0, "perf_event_open");
}

static void read_at(int fd, uint64_t offset, size_t bytes) { check(pread(fd, scratch, bytes, (off_t)offset) > 0, "pread"); }

/* The headers, and the sections of notes. */
static void read_notes(int file) {
  read_at(file, 0, PAGE_BYTES);
  Elf64_Ehdr head;
  memcpy(&head, scratch, sizeof head);
  Elf64_Shdr sections[MAX_SECTIONS];
  check(head.e_shnum <= MAX_SECTIONS, "section headers");
  read_at(file, head.e_shoff, head.e_shnum * sizeof *sections);
  memcpy(sections, scratch, head.e_shnum * sizeof *sections);
  read_at(file, sections[head.e_shstrndx].sh_offset, sections[head.e_shstrndx].sh_size);
  uint64_t at = 0, bytes = 0;
  for (int i = 0; i < head.e_shnum; i++) {
    if (strcmp(scratch + sections[i].sh_name, ".note.stapsdt") != 0) continue;
    at = sections[i].sh_offset;
    bytes = sections[i].sh_size;
  }
  check(bytes > 0 && bytes <= sizeof scratch, "notes");
  read_at(file, at, bytes);
}

static void read_code(int file, const uint64_t *offsets, int count) {
  uint64_t end = 0;
  for (int i = 0; i < count; i++) {
    if (offsets[i] < end) continue;
    read_at(file, offsets[i], WINDOW_BYTES);
    end = offsets[i] + WINDOW_BYTES;
  }
}

/* The pages of the process in which these places of the file are, each once: those that are executed, or those that are written. */
static void read_pages(int memory, const uint64_t *offsets, int count, int permission, char letter) {
  uint64_t last = 0;
  for (int i = 0; i < count; i++) {
    for (int m = 0; m < mapping_count; m++) {
      const struct mapping *mapping = &mappings[m];
      if (mapping->permissions[permission] != letter || offsets[i] < mapping->offset || offsets[i] - mapping->offset >= mapping->end - mapping->start) continue;
      uint64_t page = (mapping->start + offsets[i] - mapping->offset) & ~(PAGE_BYTES - 1);
      if (page != last) read_at(memory, page, PAGE_BYTES);
      last = page;
    }
  }
}

static void time_whole(const char *path, pid_t pid, const uint64_t *offsets, const uint64_t *counters, int count) {
  int ring = create_ring();
  wait_for_any_moment();
  int64_t start = now_ns();
  int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
  check(pidfd >= 0, "pidfd_open");
  char name[64];
  snprintf(name, sizeof name, "fdinfo/%d", pidfd);
  read_of(getpid(), name);
  snprintf(name, sizeof name, "task/%d/stat", pid);
  int state = open_of(pid, name, O_RDONLY);
  for (int i = 0; i < 3; i++) read_at(state, 0, PAGE_BYTES);
  int memory = open_of(pid, "mem", O_RDONLY);
  int root = open_of(pid, "root", O_PATH | O_DIRECTORY);
  int file = openat(root, path + 1, O_RDONLY | O_CLOEXEC);
  struct stat identity;
  check(file >= 0 && fstat(file, &identity) == 0, path);
  close(root);
  read_mappings(pid, &identity);
  read_notes(file);
  read_code(file, offsets, count);
  read_mappings(pid, &identity);
  read_of(pid, "status");
  read_pages(memory, counters, count, 1, 'w');
  create_map(BPF_MAP_TYPE_PERCPU_ARRAY, 4, 64 * 24, (uint32_t)(count + 63) / 64);
  for (int i = 0; i < 2; i++) read_at(state, 0, PAGE_BYTES);
  open_watch(pid);
  int program = ints_program(ring, TRACE_UPROBE_MULTI, BPF_RB_NO_WAKEUP);
  snprintf(name, sizeof name, "/proc/self/fd/%d", file);
  int link = create_link(program, name, pid, offsets, counters, counters, count);
  read_mappings(pid, &identity);
  read_pages(memory, offsets, count, 2, 'x');
  read_pages(memory, counters, count, 1, 'w');
  for (int i = 0; i < 3; i++) read_at(state, 0, PAGE_BYTES);
  report_closing(link, now_ns() - start);
}

int main(int argc, char **argv) {
  static uint64_t offsets[MAX_SITES], counters[MAX_SITES];
  if (argc < 5 || argc - 4 > MAX_SITES) {
    fputs("usage: floor count|empty|ints|text|tally|filter|histogram|stack|wake PATH OFFSET PID, floor pair PATH OFFSET PID OFFSET, or floor perf|multi|whole PATH PID OFFSET...\n", stderr);
    return 2;
  }
  const char *mode = argv[1];
  const char *path = argv[2];
  if (strcmp(mode, "wake") == 0) {
    time_wake_ups(path, strtoull(argv[3], NULL, 0), atoi(argv[4]));
    return 0;
  }
  int timing = strcmp(mode, "perf") == 0 || strcmp(mode, "multi") == 0 || strcmp(mode, "whole") == 0;
  if (!timing) {
    hold(mode, path, strtoull(argv[3], NULL, 0), atoi(argv[4]), argc > 5 ? strtoull(argv[5], NULL, 0) : 0);
    return 0;
  }
  int count = argc - 4;
  for (int i = 0; i < count; i++) {
    char *end;
    offsets[i] = strtoull(argv[4 + i], &end, 0);
    if (*end == ':') counters[i] = strtoull(end + 1, NULL, 0);
  }
  (strcmp(mode, "perf") == 0 ? time_perf : strcmp(mode, "multi") == 0 ? time_multi : time_whole)(path, atoi(argv[3]), offsets, counters, count);
  return 0;
}
