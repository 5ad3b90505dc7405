// Which mapping covers an address of a process: asked of the kernel through an open /proc/PID/maps.
//
// Linux 6.11 answers for one address by an ioctl, in less than a microsecond. Before that the kernel prints the whole list of mappings, sorted by
// address, and it is read up to the line that matters. The text is the kernel's own; the only part that anybody else can choose is the name at the end of a
// line, in which the kernel escapes line feeds (`seq_path` in `show_map_vma`, fs/proc/task_mmu.c), and which is skipped.
//
// The descriptor belongs to the address space that the process had when it was opened (`proc_maps_open`, fs/proc/task_mmu.c), whatever becomes of the pid.
#pragma once

#include <cstdint>
#include <optional>

#include "result.h"

namespace uprobe {

// A mapping, in the words of `maps`.
struct Vma {
  std::uint64_t start;
  std::uint64_t end;  // exclusive
  bool writable;
  bool shared;
  std::uint64_t file_offset;  // of `start`; 0 for memory that is no file's
  std::uint32_t device_major;
  std::uint32_t device_minor;
  std::uint64_t inode;  // 0 for memory that is no file's
};

class VmaFinder {
 public:
  enum class Way { kIoctl, kText };

  // `maps_fd` stays the caller's. Tests choose the way; otherwise the kernel does, with its first answer.
  explicit VmaFinder(int maps_fd, Way way = Way::kIoctl) : maps_fd_(maps_fd), way_(way) {}

  // The mapping that covers `address`, if there is one. ESRCH: the address space is gone.
  Result<std::optional<Vma>> Find(std::uint64_t address);

  Way way() const { return way_; }

 private:
  const int maps_fd_;
  Way way_;
};

}  // namespace uprobe
