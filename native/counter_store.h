// Stores to one counter of a USDT probe: 16 bits in a process, in which the kernel counts tracers and of which we own the highest.
//
// The kernel reads the counter as a signed number and changes it by a plain read, add and store (`__update_ref_ctr`, kernel/events/uprobes.c): it knows
// of no other writer. What makes a second writer possible is where each of the two writes.
//
//   * The store is one byte. The kernel counts in the low byte as long as fewer than 256 sites share a counter; bit 15 is in the high byte, which is 0x00 or
//     0x80 then. So setting and clearing it needs no read of the counts, and cannot write an old one back. A high byte with other bits is refused.
//   * The store goes through an open /proc/PID/mem. The kernel holds the mmap_lock of the target while it copies (`__access_remote_vm`, mm/memory.c, for
//     reading), and holds it for writing while it counts (`register_for_each_vma`, kernel/events/uprobes.c), so neither comes between the other's load and
//     store. (Before 6.18 the removal of a breakpoint in the course of its own hit, `unapply_uprobe`, counted with the lock held for reading. Whoever claims
//     a counter keeps the kernel from counting on it at all.) process_vm_writev(2) does not do: it copies after it has let go of the lock
//     (`process_vm_rw_single_vec`, mm/process_vm_access.c).
//   * /proc/PID/mem and /proc/PID/maps belong to the address space that the process had when they were opened (`proc_mem_open`, fs/proc/base.c). When
//     that is gone, by exit or by exec, they give and take nothing. No process that gets the pid later is ever written.
//   * /proc/PID/mem ignores the protection of a mapping (FOLL_FORCE in `mem_rw`, fs/proc/base.c), and follows the address wherever it leads. So before each
//     access the kernel is asked what is mapped there: it must be the expected place of the expected file, writable and private.
//
// In the own process the store is an atomic `or` or `and` of the 16 bits, which is right against the program's own threads. The kernel's plain add can
// still overwrite it, and so it is read back, like the other.
//
// Between asking for the mapping and the store, a thread of the target may unmap the memory and map something else at the same address. Nothing but stopping
// the target would exclude that; the owner of a claim knows when a library goes, since its breakpoints go with it.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <optional>

#include "result.h"
#include "vma.h"

namespace uprobe {

// What must be mapped at the counter's address.
struct ExpectedMapping {
  std::uint32_t device_major;  // as maps prints them; 0 and 0 for memory that is no file's
  std::uint32_t device_minor;
  std::uint64_t inode;        // 0 for memory that is no file's
  std::uint64_t file_offset;  // of the counter itself; ignored for memory that is no file's
};

class CounterStore {
 public:
  enum class Space { kOwn, kOther };

  // `mem_fd` and `maps_fd` stay the caller's, and must be of one address space. In the own space only `maps_fd` is used, and has to be ours.
  CounterStore(Space space, int mem_fd, int maps_fd, std::uint64_t address, const ExpectedMapping& expected,
               VmaFinder::Way way = VmaFinder::Way::kIoctl)
      : space_(space), mem_fd_(mem_fd), address_(address), expected_(expected), vmas_(maps_fd, way) {}

  // Each of these fails with "counter_store" and
  //   EINVAL  the address is odd
  //   ESRCH   the address space is gone
  //   EFAULT  nothing is mapped there, or no memory is behind it
  //   ESTALE  something else is
  //   EACCES  the mapping is read-only or shared
  // or with another system call's name and errno.

  Result<std::uint16_t> Read();

  // Set or clear bit 15 and answer the value afterwards; nothing is stored if the bit is as wanted. ERANGE: the high byte is neither 0x00 nor 0x80; EBUSY:
  // somebody else wrote the bit meanwhile.
  Result<std::uint16_t> SetMsb() { return ChangeMsb(kMsb); }
  Result<std::uint16_t> ClearMsb() { return ChangeMsb(0); }

  // Stores `value` if the counter reads `expected`, both of 16 bits; EBUSY if it reads anything else, before or afterwards. Two bytes: the caller must know
  // that the kernel does not count in them meanwhile.
  Result<Nothing> Replace(std::uint16_t expected, std::uint16_t value);

 private:
  static constexpr std::uint16_t kMsb = 0x8000;

  std::optional<Failure> RefusalOfPlace();
  Result<std::uint16_t> ChangeMsb(std::uint16_t wanted);

  // The accesses themselves, which check nothing.
  Result<std::uint16_t> Load() const;
  std::optional<Failure> StoreMsb(std::uint16_t wanted) const;
  std::optional<Failure> StoreAll(std::uint16_t expected, std::uint16_t value) const;
  std::optional<Failure> WriteMemory(const void* bytes, std::size_t count, std::uint64_t address) const;
  Failure FailedAccess(const char* syscall, ssize_t count) const;
  std::uint16_t* OwnCounter() const { return reinterpret_cast<std::uint16_t*>(static_cast<std::uintptr_t>(address_)); }

  const Space space_;
  const int mem_fd_;
  const std::uint64_t address_;
  const ExpectedMapping expected_;
  VmaFinder vmas_;
};

}  // namespace uprobe
