#include "sideband.h"

#include <limits.h>
#include <linux/perf_event.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <utility>

namespace uprobe {

namespace {

// Forks are remembered for as long as it may take until somebody names the parent: the records of another CPU, and a busy event loop.
constexpr std::int64_t kRememberNs = 2'000'000'000;
constexpr std::size_t kRememberForks = 1024;

// The layout of records, from include/uapi/linux/perf_event.h; no sample_id follows, since attr.sample_id_all is not set.
struct ForkRecord {
  perf_event_header header;
  std::uint32_t pid, parent;
  std::uint32_t tid, parent_tid;
  std::uint64_t time;
};

struct Mmap2Record {
  perf_event_header header;
  std::uint32_t pid, tid;
  std::uint64_t address, length, offset;
  std::uint32_t device_major, device_minor;
  std::uint64_t inode, inode_generation;
  std::uint32_t protection, flags;
  // The path follows, with a NUL and padded to 8 bytes.
};

constexpr std::size_t kLargestRecord = sizeof(Mmap2Record) + PATH_MAX + 8;

constexpr std::string_view kDeleted = " (deleted)";

bool EndsWith(std::string_view text, std::string_view end) {
  return text.size() >= end.size() && text.substr(text.size() - end.size()) == end;
}

}  // namespace

std::vector<SidebandEvent> SidebandFilter::Set(Wanted wanted, std::int64_t now_ns) {
  std::vector<SidebandEvent> events;
  const Wanted before = std::exchange(wanted_, std::move(wanted));
  Forget(now_ns);
  for (const int pid : wanted_.pids) {
    if (before.pids.count(pid) == 0) TellChildrenOf(pid, events);
  }
  return events;
}

bool SidebandFilter::MatchesMap(std::uint64_t inode, std::string_view path) const {
  if (wanted_.inodes.count(inode) != 0) return true;
  if (wanted_.names.empty()) return false;
  // d_path (fs/d_path.c) says so of a file whose name is gone.
  if (EndsWith(path, kDeleted)) path.remove_suffix(kDeleted.size());
  const std::size_t slash = path.rfind('/');
  if (slash == std::string_view::npos) return false;  // memory that is no file's, such as "[vdso]"
  return wanted_.names.count(std::string(path.substr(slash + 1))) != 0;
}

void SidebandFilter::OnFork(int pid, int parent, std::int64_t now_ns, std::vector<SidebandEvent>& events) {
  if (wanted_.inodes.empty() && wanted_.pids.empty()) return;
  Forget(now_ns);
  const bool known = IsKnown(parent);
  forks_.push_back({pid, parent, now_ns, known});
  if (!known) return;
  events.push_back({SidebandEvent::Kind::kFork, pid});
  TellChildrenOf(pid, events);
}

// Whether a process is named, or was told of just now.
bool SidebandFilter::IsKnown(int pid) const {
  if (wanted_.pids.count(pid) != 0) return true;
  // The latest fork decides: pids come round.
  const auto born = std::find_if(forks_.rbegin(), forks_.rend(), [pid](const Fork& fork) { return fork.pid == pid; });
  return born != forks_.rend() && born->told;
}

void SidebandFilter::TellChildrenOf(int pid, std::vector<SidebandEvent>& events) {
  std::vector<int> parents{pid};
  while (!parents.empty()) {
    const int parent = parents.back();
    parents.pop_back();
    for (Fork& fork : forks_) {
      if (fork.parent != parent || fork.told) continue;
      fork.told = true;
      events.push_back({SidebandEvent::Kind::kFork, fork.pid});
      parents.push_back(fork.pid);
    }
  }
}

void SidebandFilter::Forget(std::int64_t now_ns) {
  while (!forks_.empty() && (forks_.size() >= kRememberForks || forks_.front().at_ns < now_ns - kRememberNs)) forks_.pop_front();
}

Result<SidebandRing> SidebandRing::Map(int fd, std::size_t pages) {
  const auto page_bytes = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  SidebandRing ring;
  // The first page is a struct perf_event_mmap_page. Writable, or the kernel would overwrite records that we have not read.
  ring.mapping_ = Mapping(fd, 0, (1 + pages) * page_bytes, PROT_READ | PROT_WRITE);
  if (!ring.mapping_.valid()) return LastFailure("mmap");
  ring.data_ = static_cast<const std::uint8_t*>(ring.mapping_.address()) + page_bytes;
  ring.data_bytes_ = pages * page_bytes;
  return ring;
}

void SidebandRing::Read(SidebandFilter& filter, std::int64_t now_ns, std::vector<SidebandEvent>& events) {
  auto* const control = static_cast<perf_event_mmap_page*>(mapping_.address());
  // Pairs with the smp_wmb() before the store of data_head in perf_output_put_handle, kernel/events/ring_buffer.c.
  const std::uint64_t head = __atomic_load_n(&control->data_head, __ATOMIC_ACQUIRE);
  std::uint64_t tail = control->data_tail;
  // The kernel tells of a loss in front of the next record that fits, which on an idle CPU may be long in coming. So a ring that may have had no room counts as a loss.
  const bool full = data_bytes_ - (head - tail) < std::min(kLargestRecord, data_bytes_ / 8);
  while (head - tail >= sizeof(perf_event_header)) {
    perf_event_header header;
    Copy(tail, sizeof header, reinterpret_cast<std::uint8_t*>(&header));
    if (header.size < sizeof header || header.size > head - tail) {
      // Never seen; whatever it is, nothing behind it can be read.
      events.push_back({SidebandEvent::Kind::kLost, 0});
      tail = head;
      break;
    }
    if (header.type == PERF_RECORD_MMAP2 || header.type == PERF_RECORD_FORK || header.type == PERF_RECORD_LOST) {
      record_.resize(header.size);
      Copy(tail, header.size, record_.data());
      Handle(record_.data(), header.size, filter, now_ns, events);
    }
    tail += header.size;
  }
  // Pairs with the control dependency on data_tail in __perf_output_begin.
  __atomic_store_n(&control->data_tail, tail, __ATOMIC_RELEASE);
  if (full) events.push_back({SidebandEvent::Kind::kLost, 0});
}

void SidebandRing::Handle(const std::uint8_t* record, std::size_t bytes, SidebandFilter& filter, std::int64_t now_ns,
                          std::vector<SidebandEvent>& events) {
  perf_event_header header;
  std::memcpy(&header, record, sizeof header);
  if (header.type == PERF_RECORD_LOST) {
    events.push_back({SidebandEvent::Kind::kLost, 0});
  } else if (header.type == PERF_RECORD_FORK && bytes >= sizeof(ForkRecord)) {
    ForkRecord fork;
    std::memcpy(&fork, record, sizeof fork);
    // A thread has the pid of its process. A process of a pid namespace that is not below ours has the pid 0.
    if (fork.pid == fork.tid && fork.pid != fork.parent && fork.pid != 0) {
      filter.OnFork(static_cast<int>(fork.pid), static_cast<int>(fork.parent), now_ns, events);
    }
  } else if (header.type == PERF_RECORD_MMAP2 && bytes > sizeof(Mmap2Record)) {
    Mmap2Record map;
    std::memcpy(&map, record, sizeof map);
    const auto* const path = reinterpret_cast<const char*>(record) + sizeof map;
    const std::string_view text(path, strnlen(path, bytes - sizeof map));
    if (map.pid != 0 && filter.MatchesMap(map.inode, text)) events.push_back({SidebandEvent::Kind::kMap, static_cast<int>(map.pid)});
  }
}

// Copies out of the ring, whose end is followed by its beginning.
void SidebandRing::Copy(std::uint64_t position, std::size_t bytes, std::uint8_t* to) const {
  const std::size_t begin = position % data_bytes_;
  const std::size_t first = std::min(bytes, data_bytes_ - begin);
  std::memcpy(to, data_ + begin, first);
  std::memcpy(to + first, data_, bytes - first);
}

}  // namespace uprobe
