/*
 * A program whose probes have operands of every form, with values that the test knows (test/capture/values.test.ts). It is written in assembler, so that the
 * operands are where the notes say, and not where a compiler would like them.
 *
 *   t:registers    parts of registers of each size, signed and unsigned
 *   t:memory       each form of address
 *   t:variables    relative to the instruction pointer
 *   t:floats       in registers and in memory
 *   t:constants    and operands that cannot be read
 *   t:unreadable   memory that is not there
 *   t:text         one string, by a pointer in a register, in memory, and in a variable
 *
 * Commands: each name fires its probe once; `text N` with a string of N bytes that ends where the memory ends, `text N é` with one of N two-byte
 * characters, `text null` with a null pointer.
 */
#define _GNU_SOURCE
#include "probe.h"
#include "protocol.h"

#include <stdint.h>
#include <sys/mman.h>

#ifndef __x86_64__
#error the operands are those of x86-64
#endif

#define TEXT(name, arguments) PROBE_TEXT("t", name, NO_SEMAPHORE, arguments)

/* Reached by number(%rip) and through registers. */
__attribute__((used)) uint64_t numbers[] = {
    UINT64_C(0x8182838485868788), 5, UINT64_C(0xfffffffffffffff6), UINT64_C(0x7fffffffffffffff), UINT64_C(0x4045000000000000), UINT64_C(0xc0200000),
};
__attribute__((used)) const char *pointer;

void fire_registers(void);
void fire_memory(void);
void fire_variables(void);
void fire_floats(void);
void fire_constants(void);
void fire_unreadable(void);
void fire_text(const char *text);

#define FUNCTION(name, body) ".globl " name "\n.type " name ", @function\n" name ":\n" body "ret\n.size " name ", . - " name "\n"

__asm__(".text\n" FUNCTION("fire_registers",
                           "push %rbx\n"
                           "push %r12\n"
                           "push %r15\n"
                           "movabs $0x8182838485868788, %rax\n"
                           "movabs $0xf1f2f3f4f5f6f7f8, %rbx\n"
                           "movabs $0x1112131415161718, %rsi\n"
                           "movabs $0x2122232425262728, %r9\n"
                           "movabs $0x3132333435363738, %r12\n"
                           "movabs $0xfffffffffffffffe, %r15\n"
                           TEXT("registers", "8@%rax -8@%rax 4@%eax -4@%eax 2@%ax -2@%ax 1@%al -1@%al 1@%ah -1@%ah 1@%bh -1@%bh 1@%sil 2@%si "
                                             "4@%r9d 2@%r12w 1@%r12b -8@%r15 -4@%r15d -2@%r15w -1@%r15b 8@%r15 %eax %ah")
                           "pop %r15\n"
                           "pop %r12\n"
                           "pop %rbx\n")
            FUNCTION("fire_memory",
                     "push %rbx\n"
                     "push $77\n"
                     "push $-3\n"
                     "lea numbers(%rip), %rbx\n"
                     "mov $2, %ecx\n"
                     TEXT("memory", "8@(%rbx) -8@(%rbx) 4@(%rbx) -4@4(%rbx) 2@(%rbx) -2@0x6(%rbx) 1@7(%rbx) -1@7(%rbx) 1@(%rbx,%rcx) 8@(%rbx,%rcx,4) "
                                    "-8@(%rbx,%rcx,8) 8@-8(%rbx,%rcx,8) 8@8(%rbx,%rcx,8) -8@(%rsp) 4@8(%rsp)")
                     "add $16, %rsp\n"
                     "pop %rbx\n")
            FUNCTION("fire_variables",
                     TEXT("variables", "8@numbers(%rip) 4@8+numbers(%rip) -8@numbers+16(%rip) -4@numbers+0x10(%rip) 1@-1+numbers+8(%rip) 8@nowhere(%rip)"))
            FUNCTION("fire_floats",
                     "movabs $0x400921fb54442d18, %rax\n"
                     "movabs $0xffffffff3fc00000, %rdx\n"
                     "lea numbers(%rip), %rcx\n"
                     TEXT("floats", "8f@%rax 4f@%edx 8f@32(%rcx) 4f@40+numbers(%rip) 8f@%xmm0"))
            FUNCTION("fire_constants", TEXT("constants", "-4@$-1 4@$-1 -4@$1572864 8@$0 -8@$-9223372036854775808 1@$0x141 8@%fs:40 -2@$7"))
            FUNCTION("fire_unreadable",
                     "mov $0x10, %eax\n"
                     "movabs $0x7ffffffff000, %rdx\n"
                     "movabs $0xffff800000000000, %rcx\n"
                     TEXT("unreadable", "4@(%rax) 8@-8(%rax) -1@(%rdx) 2@0x20(%rcx) 4@%eax"))
            FUNCTION("fire_text",
                     "push %rdi\n"
                     "mov %rdi, pointer(%rip)\n"
                     TEXT("text", "8@%rdi 8@(%rsp) 8@pointer(%rip) 4@$3")
                     "pop %rdi\n"));

/* Copies of `unit`, and a NUL, in front of memory that cannot be read. */
static const char *at_end_of_memory(const char *unit, size_t count) {
  static char *memory;
  const size_t bytes = 64 * 1024;
  if (memory == NULL) {
    memory = mmap(NULL, 2 * bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory + bytes, bytes, PROT_NONE) != 0) abort();
  }
  const size_t length = strlen(unit) * count;
  if (length >= bytes) abort();
  char *text = memory + bytes - length - 1;
  for (size_t i = 0; i < count; i++) memcpy(text + i * strlen(unit), unit, strlen(unit));
  text[length] = '\0';
  return text;
}

static void fire_string(const char *argument) {
  char *unit;
  if (strcmp(argument, "null") == 0) {
    fire_text(NULL);
    return;
  }
  const unsigned long count = strtoul(argument, &unit, 10);
  fire_text(at_end_of_memory(*unit == ' ' ? unit + 1 : "x", count));
}

static const struct {
  const char *name;
  void (*fire)(void);
} probes[] = {
    {"registers", fire_registers}, {"memory", fire_memory},       {"variables", fire_variables},
    {"floats", fire_floats},       {"constants", fire_constants}, {"unreadable", fire_unreadable},
};

int main(void) {
  char line[256];
  answer("ready");
  while (read_command(line, sizeof line)) {
    const char *argument = argument_of(line, "text");
    if (argument != NULL) fire_string(argument);
    for (size_t i = 0; i < sizeof probes / sizeof *probes; i++)
      if (strcmp(line, probes[i].name) == 0) probes[i].fire();
    answer("fired");
  }
  return 0;
}
