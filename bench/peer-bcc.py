"""
What bcc does at a hit: a program in C for each thing that the benchmarks measure, attached to USDT probes of the target.

    peer-bcc.py tally|filter|ints|text|histogram|stack PID NAME
    peer-bcc.py pair PID NAME_OF_START NAME_OF_DONE

Reads what arrives until SIGINT, as bcc's own tools do.
"""
import os
import signal
import sys

from bcc import BPF, USDT

HEAD = """
#include <uapi/linux/ptrace.h>
struct ints { u64 time; u64 thread; int a; int b; };
struct text { struct ints ints; char text[64]; };
BPF_RINGBUF_OUTPUT(ring, 2048);
BPF_PERCPU_ARRAY(counts, u64, 2);
BPF_HISTOGRAM(histogram);
BPF_HASH(starts, u64, u64);
BPF_STACK_TRACE(stacks, 1024);
BPF_HASH(by_stack, int, u64);
"""

BODIES = {
    "tally": ["counts.atomic_increment(0);"],
    "filter": ["int a = 0; bpf_usdt_readarg(1, ctx, &a); if (a >= 0) return 0; counts.atomic_increment(0);"],
    "ints": [
        """
        struct ints *record = ring.ringbuf_reserve(sizeof(*record));
        if (!record) return 0;
        int a = 0, b = 0;
        bpf_usdt_readarg(1, ctx, &a);
        bpf_usdt_readarg(2, ctx, &b);
        record->time = bpf_ktime_get_ns();
        record->thread = bpf_get_current_pid_tgid();
        record->a = a;
        record->b = b;
        ring.ringbuf_submit(record, 0);
        """
    ],
    "text": [
        """
        struct text *record = ring.ringbuf_reserve(sizeof(*record));
        if (!record) return 0;
        int a = 0, b = 0;
        u64 text = 0;
        bpf_usdt_readarg(1, ctx, &a);
        bpf_usdt_readarg(2, ctx, &b);
        bpf_usdt_readarg(3, ctx, &text);
        record->ints.time = bpf_ktime_get_ns();
        record->ints.thread = bpf_get_current_pid_tgid();
        record->ints.a = a;
        record->ints.b = b;
        bpf_probe_read_user_str(record->text, sizeof(record->text), (void *)text);
        ring.ringbuf_submit(record, 0);
        """
    ],
    "histogram": ["int a = 0; bpf_usdt_readarg(1, ctx, &a); histogram.atomic_increment(bpf_log2l(a));"],
    "pair": [
        "u64 thread = bpf_get_current_pid_tgid(), now = bpf_ktime_get_ns(); starts.update(&thread, &now);",
        """
        u64 thread = bpf_get_current_pid_tgid();
        u64 *start = starts.lookup(&thread);
        if (!start) return 0;
        histogram.atomic_increment(bpf_log2l(bpf_ktime_get_ns() - *start));
        starts.delete(&thread);
        """,
    ],
    "stack": ["int id = stacks.get_stackid(ctx, BPF_F_USER_STACK); by_stack.atomic_increment(id);"],
}


def main(mode, pid, names):
    usdt = USDT(pid=int(pid))
    functions = [f"int at_{index}(struct pt_regs *ctx) {{ {body} return 0; }}" for index, body in enumerate(BODIES[mode])]
    for index, name in enumerate(names):
        usdt.enable_probe(probe=f"bench:{name}", fn_name=f"at_{index}")
    bpf = BPF(text=HEAD + "\n".join(functions), usdt_contexts=[usdt])
    if mode not in ("ints", "text"):
        signal.pause()
    seen = 0

    def on_record(_context, data, _size):
        nonlocal seen
        record = bpf["ring"].event(data)
        seen += record.a + record.b if mode == "ints" else record.ints.a + len(record.text)

    bpf["ring"].open_ring_buffer(on_record)
    while True:
        bpf.ring_buffer_poll()


# What the process holds ends with it. bcc's own clearing up would look for the events in tracefs, which need not be mounted; and an exception would be swallowed if
# the signal came during a callback.
signal.signal(signal.SIGINT, lambda *_: os._exit(0))
main(sys.argv[1], sys.argv[2], sys.argv[3:])
