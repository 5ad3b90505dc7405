// USDT probes of our own, without <sys/sdt.h>: x86-64 and arm64.
//
// A USDT probe is one no-op instruction and one ELF note that describes it. A tracer finds the note, and puts a breakpoint on the no-op.
// The note (name "stapsdt", type 3) is in the section .note.stapsdt, which is in the file but not in memory:
//
//   8 bytes   address of the no-op
//   8 bytes   address of the one byte in .stapsdt.base; whoever moves the sections of the file later (prelink) does not
//             adjust notes, but does move that section, so the difference corrects the other two addresses
//   8 bytes   address of the semaphore, or 0
//   3 strings provider, name, and the arguments: "-4@%edi 8@%rsi" is a signed int and a 64-bit value, in those registers
//
// The semaphore is an unsigned 16-bit counter in the section .probes. Tracers count themselves in and out on it, so that the program can
// skip the preparing of arguments while nobody looks. It must lie in a private, writable mapping of the file: the kernel searches for it
// there (valid_ref_ctr_vma, kernel/events/uprobes.c), so it cannot be in .bss.
#pragma once

#if defined(__x86_64__)
// One byte: Linux 6.18 and later turn a probed no-op of five bytes into a call.
#define UPROBE_USDT_NOP "nop"
#elif defined(__aarch64__)
#define UPROBE_USDT_NOP "nop"
#else
#error "USDT probes are written for x86-64 and arm64"
#endif

// Defines the semaphore SYMBOL. `used`, as only assembly and the kernel refer to its address and its writers; hidden, so that the note holds
// its address at link time and needs no relocation.
#define UPROBE_USDT_SEMAPHORE(SYMBOL)          \
  extern "C" {                                 \
  extern volatile unsigned short SYMBOL;       \
  }                                            \
  __attribute__((section(".probes"), used, visibility("hidden"))) volatile unsigned short SYMBOL = 0

// An instruction, which is the no-op of nearly all, and its note. SEMAPHORE is a symbol's name in quotes, or "0"; ARGUMENTS refers to asm operands, which the caller gives.
#define UPROBE_USDT_ASM(INSTRUCTION, PROVIDER, NAME, SEMAPHORE, ARGUMENTS) \
  "990: " INSTRUCTION "\n"                                                 \
  ".pushsection .note.stapsdt,\"\",\"note\"\n"                             \
  ".balign 4\n"                                                            \
  ".4byte 992f-991f, 994f-993f, 3\n"                                       \
  "991: .asciz \"stapsdt\"\n"                                              \
  "992: .balign 4\n"                                                       \
  "993: .8byte 990b\n"                                                     \
  ".8byte _.stapsdt.base\n"                                                \
  ".8byte " SEMAPHORE "\n"                                                 \
  ".asciz \"" PROVIDER "\"\n"                                              \
  ".asciz \"" NAME "\"\n"                                                  \
  ".asciz \"" ARGUMENTS "\"\n"                                             \
  "994: .balign 4\n"                                                       \
  ".popsection\n"                                                          \
  /* One base for the whole file, however many objects bring it. */       \
  ".ifndef _.stapsdt.base\n"                                               \
  ".pushsection .stapsdt.base,\"aG\",\"progbits\",.stapsdt.base,comdat\n"  \
  ".weak _.stapsdt.base\n"                                                 \
  ".hidden _.stapsdt.base\n"                                               \
  "_.stapsdt.base: .space 1\n"                                             \
  ".size _.stapsdt.base, 1\n"                                              \
  ".popsection\n"                                                          \
  ".endif\n"

// A probe without arguments and without a semaphore.
#define UPROBE_USDT_PROBE0(PROVIDER, NAME) __asm__ volatile(UPROBE_USDT_ASM(UPROBE_USDT_NOP, PROVIDER, NAME, "0", ""))

// A probe on an instruction that the kernel neither skips nor emulates, as that of a function mostly is: it is executed out of line, with a second trap behind it.
#if defined(__x86_64__)
#define UPROBE_USDT_STEP(PROVIDER, NAME) __asm__ volatile(UPROBE_USDT_ASM("xorl %%ecx, %%ecx", PROVIDER, NAME, "0", "") : : : "ecx", "cc")
#else
#define UPROBE_USDT_STEP(PROVIDER, NAME) __asm__ volatile(UPROBE_USDT_ASM("eor w9, w9, w9", PROVIDER, NAME, "0", "") : : : "x9")
#endif

// A probe with three arguments. FORMAT names their sizes and operands, as in "-4@%0 -8@%1 8@%2".
#define UPROBE_USDT_PROBE3(PROVIDER, NAME, SEMAPHORE, FORMAT, FIRST, SECOND, THIRD) \
  __asm__ volatile(UPROBE_USDT_ASM(UPROBE_USDT_NOP, PROVIDER, NAME, SEMAPHORE, FORMAT) : : "r"(FIRST), "r"(SECOND), "r"(THIRD))
