// System calls that SIGKILL must not cut short, made by a process of their own.
//
// A fatal signal that is pending on a thread makes the kernel fail wherever that thread would fetch a page (`__get_user_pages`, mm/gup.c), and putting a
// breakpoint in or taking it out begins with fetching a page of the target (`uprobe_write_opcode`, kernel/events/uprobes.c). The way back has the same
// need. So an agent that is killed while one of its threads opens or closes a probe may leave the breakpoint, the count or both in the target, where
// nothing takes them out again; the kernel then logs "failed to unregister, leaking uprobe". Hence the two functions below.
//
// Neither needs a right of its own. Where no process can be made (a limit of tasks, a seccomp filter), they do the work in the calling thread.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "result.h"

namespace uprobe {

// Makes one system call as syscall(2) does (-1 and errno if it fails), but in a child that shares our memory and descriptors and is a process of its own
// to whoever sends signals. The calling thread waits for it as in vfork(2). If we are killed meanwhile, the call goes on to its end, and then the child's
// end closes the descriptors that it shared with us, the new one among them.
long RunApart(long number, const std::array<long, 6>& arguments);

// A pointer as an argument of RunApart.
inline long Argument(const void* pointer) { return static_cast<long>(reinterpret_cast<std::uintptr_t>(pointer)); }

// Closes descriptors, so that what they were the last reference to is gone when this returns, and is let go of by a process that no signal can reach any
// more. The first failure of close(2), if any; the others are closed all the same.
std::optional<Failure> CloseApart(const std::vector<int>& fds);

}  // namespace uprobe
