/*
 * USDT probes for the targets of the tests, without sys/sdt.h.
 *
 * A USDT probe is a nop in the code and a note in the section .note.stapsdt that says where the nop is, how the probe is called, where its semaphore lies and
 * in which registers or memory its arguments are found. The assembler writes the note, since only the compiler's operand printing (%[x]) knows
 * where an argument is at that place:
 *
 *     PROBE("t", "gated", "t_gated_semaphore", "-4@%[a] 8@%[b]", [a] "nor"(number), [b] "nor"(text));
 *
 * The nop has one byte on x86-64: longer ones are replaced by some kernels in ways that harm the program. PROBE_NOP is another instruction.
 */
#ifndef TARGET_PROBE_H
#define TARGET_PROBE_H

#define NO_SEMAPHORE "0"

#ifndef PROBE_NOP
#define PROBE_NOP "nop"
#endif

/* The text for the assembler: the nop and its note. */
#define PROBE_TEXT(provider, name, semaphore, arguments)                                                                        \
  "990: " PROBE_NOP "\n"                                                                                                        \
  ".pushsection .note.stapsdt, \"\", \"note\"\n"                                                                                \
  ".balign 4\n"                                                                                                                 \
  ".4byte 992f - 991f, 994f - 993f, 3\n"                                                                                        \
  "991: .asciz \"stapsdt\"\n"                                                                                                   \
  "992: .balign 4\n"                                                                                                            \
  "993: .8byte 990b\n"                                                                                                          \
  ".8byte _.stapsdt.base\n"                                                                                                     \
  ".8byte " semaphore "\n"                                                                                                      \
  ".asciz \"" provider "\"\n"                                                                                                   \
  ".asciz \"" name "\"\n"                                                                                                       \
  ".asciz \"" arguments "\"\n"                                                                                                  \
  "994: .balign 4\n"                                                                                                            \
  ".popsection\n"                                                                                                               \
  ".ifndef _.stapsdt.base\n"                                                                                                    \
  ".pushsection .stapsdt.base, \"aG\", \"progbits\", .stapsdt.base, comdat\n"                                                   \
  ".weak _.stapsdt.base\n"                                                                                                      \
  ".hidden _.stapsdt.base\n"                                                                                                    \
  "_.stapsdt.base: .space 1\n"                                                                                                  \
  ".size _.stapsdt.base, 1\n"                                                                                                   \
  ".popsection\n"                                                                                                               \
  ".endif\n"

#define PROBE(provider, name, semaphore, arguments, ...) __asm__ volatile(PROBE_TEXT(provider, name, semaphore, arguments) : : __VA_ARGS__)

/* A semaphore, which the program reads and tracers raise; it lies in the file, in a writable section, so that the kernel can find it. */
#define SEMAPHORE(symbol) __attribute__((section(".probes"), used, visibility("hidden"))) volatile unsigned short symbol = 0

#endif
