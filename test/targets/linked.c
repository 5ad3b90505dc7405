/*
 * linked PATH OFFSET COUNTER PID: a tracer that registers one site as a perf event, runs an empty BPF program at it through a BPF link, and closes the event, so that the link is all it
 * has. Then it says "ready", and keeps it until its input ends.
 */
#include "protocol.h"

#include <errno.h>
#include <linux/bpf.h>
#include <linux/perf_event.h>
#include <stdint.h>
#include <sys/resource.h>
#include <sys/syscall.h>

/* enum bpf_attach_type and enum bpf_cmd; older headers lack the first. */
#define ATTACH_PERF_EVENT 41

static int checked(long result, const char *what) {
  if (result >= 0) return (int)result;
  fprintf(stderr, "%s: %s\n", what, strerror(errno));
  exit(1);
}

static int pmu_type(void) {
  FILE *file = fopen("/sys/bus/event_source/devices/uprobe/type", "r");
  int type;
  if (file == NULL || fscanf(file, "%d", &type) != 1) exit(1);
  fclose(file);
  return type;
}

static int load_empty_program(void) {
  const struct bpf_insn insns[] = {
      {.code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = 0, .imm = 0},
      {.code = BPF_JMP | BPF_EXIT},
  };
  union bpf_attr attr = {
      .prog_type = BPF_PROG_TYPE_KPROBE,
      .insns = (uintptr_t)insns,
      .insn_cnt = sizeof insns / sizeof insns[0],
      .license = (uintptr_t) "GPL",
  };
  return checked(syscall(SYS_bpf, BPF_PROG_LOAD, &attr, sizeof attr), "BPF_PROG_LOAD");
}

int main(int argc, char **argv) {
  if (argc != 5) return 2;
  struct perf_event_attr event = {
      .type = pmu_type(),
      .size = sizeof event,
      .config = strtoull(argv[3], NULL, 0) << 32,
      .config1 = (uintptr_t)argv[1],
      .config2 = strtoull(argv[2], NULL, 0),
  };
  int perf = checked(syscall(SYS_perf_event_open, &event, atoi(argv[4]), -1, -1, PERF_FLAG_FD_CLOEXEC), "perf_event_open");
  union bpf_attr attr = {0};
  attr.link_create.prog_fd = load_empty_program();
  attr.link_create.target_fd = perf;
  attr.link_create.attach_type = ATTACH_PERF_EVENT;
  checked(syscall(SYS_bpf, BPF_LINK_CREATE, &attr, sizeof attr), "BPF_LINK_CREATE");
  close(perf);
  answer("ready");
  char line[8];
  while (read_command(line, sizeof line)) continue;
  return 0;
}
