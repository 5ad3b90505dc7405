// The kernel's side band: which processes map a file, and which are born, on one CPU.
//
// A dummy perf event of a CPU (sidebandOpen, perf_event.cc) writes a record into its ring for every executable mapping and every fork that happens there. That is the
// whole machine's, so most of it is dropped right here: JavaScript is told only of what a filter names.
//
// The rings of several CPUs are read one after another, so the fork of a grandchild may be read before that of its parent, and a short-lived parent
// may be gone before anybody names it. A filter therefore remembers the forks of the last moments, and a child of a child that matters, matters.
#pragma once

#include <cstdint>
#include <deque>
#include <string>
#include <string_view>
#include <unordered_set>
#include <vector>

#include "mapping.h"
#include "result.h"

namespace uprobe {

struct SidebandEvent {
  enum class Kind { kMap, kFork, kLost };
  Kind kind;
  int pid;  // 0 for kLost
};

// What matters. Not thread-safe.
class SidebandFilter {
 public:
  struct Wanted {
    std::unordered_set<std::uint64_t> inodes;
    std::unordered_set<std::string> names;
    std::unordered_set<int> pids;
  };

  // Replaces what matters; answers the forks, seen already, of processes that are named now and were not before.
  std::vector<SidebandEvent> Set(Wanted wanted, std::int64_t now_ns);

  bool MatchesMap(std::uint64_t inode, std::string_view path) const;
  // Appends the new process, and those of its children that were seen before it, if it is a descendant of one that matters.
  void OnFork(int pid, int parent, std::int64_t now_ns, std::vector<SidebandEvent>& events);

 private:
  struct Fork {
    int pid;
    int parent;
    std::int64_t at_ns;
    bool told;
  };

  bool IsKnown(int pid) const;
  void TellChildrenOf(int pid, std::vector<SidebandEvent>& events);
  void Forget(std::int64_t now_ns);

  Wanted wanted_;
  std::deque<Fork> forks_;  // the latest ones, oldest first
};

// The ring of one event.
class SidebandRing {
 public:
  // Maps it: `pages` pages, a power of two, and one more. `fd` stays the caller's.
  static Result<SidebandRing> Map(int fd, std::size_t pages);

  // Reads what is there now, and appends what matters.
  void Read(SidebandFilter& filter, std::int64_t now_ns, std::vector<SidebandEvent>& events);

 private:
  void Handle(const std::uint8_t* record, std::size_t bytes, SidebandFilter& filter, std::int64_t now_ns, std::vector<SidebandEvent>& events);
  void Copy(std::uint64_t position, std::size_t bytes, std::uint8_t* to) const;

  Mapping mapping_;
  const std::uint8_t* data_ = nullptr;
  std::size_t data_bytes_ = 0;
  std::vector<std::uint8_t> record_;  // one record, put together where it wraps around
};

}  // namespace uprobe
