// An owned, read-only mmap(2) region of many pages, made and unmade piece by piece.
//
// The kernel puts every page of a BPF ring in when it is mapped (ringbuf_map_mmap, kernel/bpf/ringbuf.c, by remap_vmalloc_range), and takes every one out when it is
// unmapped. That takes some 75 ns a page: 10 ms for a ring of 256 MiB, whose data is mapped twice. So it is done on a thread that nobody waits for. But all the
// time the kernel holds the lock of the address space, and any thread that wants memory of the kernel waits for it, as the collector of V8 does on the event loop. So the lock is given back
// after each piece.
#pragma once

#include <cstddef>

namespace uprobe {

class LargeMapping {
 public:
  LargeMapping() = default;
  // An invalid mapping, with errno set, if it fails. A child of fork(2) does not get it: copying its page tables would take fork as long again.
  LargeMapping(int fd, std::size_t offset, std::size_t bytes);
  LargeMapping(LargeMapping&& other) noexcept;
  LargeMapping& operator=(LargeMapping&& other) noexcept;
  LargeMapping(const LargeMapping&) = delete;
  LargeMapping& operator=(const LargeMapping&) = delete;
  ~LargeMapping();

  bool valid() const { return address_ != nullptr; }
  void* address() const { return address_; }

 private:
  void* address_ = nullptr;
  std::size_t bytes_ = 0;
};

}  // namespace uprobe
