/*
 * Asks the kernel which BPF programs and maps there are, whoever holds them: by their ids, one after the other (BPF_PROG_GET_NEXT_ID, BPF_MAP_GET_NEXT_ID).
 *
 * Commands:
 *
 *   programs, maps    the answer is their ids, with blanks between
 */
#define _GNU_SOURCE
#include "protocol.h"

#include <errno.h>
#include <stdint.h>
#include <sys/syscall.h>

/* enum bpf_cmd, include/uapi/linux/bpf.h */
enum { PROG_GET_NEXT_ID = 11, MAP_GET_NEXT_ID = 12 };

static void list(int command) {
  struct {
    uint32_t start_id, next_id, open_flags;
  } attributes = {0};
  printf("ids");
  while (syscall(SYS_bpf, command, &attributes, sizeof attributes) == 0) {
    printf(" %u", attributes.next_id);
    attributes.start_id = attributes.next_id;
  }
  answer(errno == ENOENT ? "" : " error");
}

int main(void) {
  answer("ready");
  for (char line[64]; read_command(line, sizeof line);) list(strcmp(line, "programs") == 0 ? PROG_GET_NEXT_ID : MAP_GET_NEXT_ID);
  return 0;
}
