// Unit tests of native/sideband.cc, without Node and without perf events: sideband-parser.test.ts compiles this with each sanitizer and runs every case.
//
//     sideband_test --list     the names of the cases, one a line
//     sideband_test NAME       runs one; silent and 0 if it holds
//
// A file in memory stands for the ring: the test writes into it what the kernel would.

#include "../../native/sideband.h"

#include <linux/perf_event.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "../../native/fd.h"

namespace {

using uprobe::Fd;
using uprobe::SidebandEvent;
using uprobe::SidebandFilter;
using uprobe::SidebandRing;

constexpr std::int64_t kSecond = 1'000'000'000;

void CheckEqual(int line, const std::string& actual, const std::string& expected) {
  if (actual == expected) return;
  std::fprintf(stderr, "sideband_test.cc:%d: \"%s\", not \"%s\"\n", line, actual.c_str(), expected.c_str());
  std::exit(1);
}
#define CHECK_EQUAL(actual, expected) CheckEqual(__LINE__, actual, expected)

// Events as "fork 17, map 18, lost".
std::string Text(const std::vector<SidebandEvent>& events) {
  std::string text;
  for (const SidebandEvent& event : events) {
    if (!text.empty()) text += ", ";
    switch (event.kind) {
      case SidebandEvent::Kind::kMap:
        text += "map " + std::to_string(event.pid);
        break;
      case SidebandEvent::Kind::kFork:
        text += "fork " + std::to_string(event.pid);
        break;
      case SidebandEvent::Kind::kLost:
        text += "lost";
        break;
    }
  }
  return text;
}

std::string Fork(SidebandFilter& filter, int pid, int parent, std::int64_t now_ns = 0) {
  std::vector<SidebandEvent> events;
  filter.OnFork(pid, parent, now_ns, events);
  return Text(events);
}

SidebandFilter::Wanted Pids(std::initializer_list<int> pids) { return {{99}, {}, pids}; }

// The ring of one page, as the kernel's side sees it.
class FakeRing {
 public:
  FakeRing() : page_bytes_(static_cast<std::size_t>(sysconf(_SC_PAGESIZE))), fd_(memfd_create("ring", MFD_CLOEXEC)) {
    if (ftruncate(fd_.get(), static_cast<off_t>(2 * page_bytes_)) != 0) std::abort();
    pages_ = static_cast<std::uint8_t*>(mmap(nullptr, 2 * page_bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, fd_.get(), 0));
    auto mapped = SidebandRing::Map(fd_.get(), 1);
    if (mapped.failure() != nullptr) std::abort();
    ring_ = std::move(mapped.value());
    filter_.Set({{99}, {"lib.so"}, {1}}, 0);
  }
  ~FakeRing() { munmap(pages_, 2 * page_bytes_); }

  // Where the next record begins, as if others had been read before.
  void StartAt(std::uint64_t position) {
    Control()->data_head = position;
    Control()->data_tail = position;
  }

  void Write(const void* bytes, std::size_t count) {
    for (std::size_t index = 0; index < count; index++) {
      pages_[page_bytes_ + Control()->data_head++ % page_bytes_] = static_cast<const std::uint8_t*>(bytes)[index];
    }
  }

  // A record of `type` and `size`, whose body is `words` and then `text`.
  void Record(std::uint32_t type, std::uint16_t size, const std::vector<std::uint32_t>& words, const std::string& text = {}) {
    std::vector<std::uint8_t> bytes(std::max<std::size_t>(size, sizeof(perf_event_header)));
    const perf_event_header header{type, 0, size};
    std::memcpy(bytes.data(), &header, sizeof header);
    std::memcpy(bytes.data() + sizeof header, words.data(), words.size() * 4);
    std::memcpy(bytes.data() + sizeof header + words.size() * 4, text.data(), text.size());
    Write(bytes.data(), bytes.size());
  }
  void ForkRecord(std::uint32_t pid, std::uint32_t parent) { Record(PERF_RECORD_FORK, 32, {pid, parent, pid, parent, 0, 0}); }
  // `tail` bytes are for the path.
  void MapRecord(std::uint32_t pid, std::uint32_t inode, const std::string& path, std::uint16_t tail) {
    Record(PERF_RECORD_MMAP2, static_cast<std::uint16_t>(72 + tail), {pid, pid, 0, 0, 0, 0, 0, 0, 8, 1, inode, 0, 0, 0, 5, 2}, path);
  }

  std::string Read() {
    std::vector<SidebandEvent> events;
    ring_.Read(filter_, 0, events);
    if (Control()->data_tail != Control()->data_head) return "not read to the end";
    return Text(events);
  }

  std::size_t bytes() const { return page_bytes_; }

 private:
  perf_event_mmap_page* Control() { return reinterpret_cast<perf_event_mmap_page*>(pages_); }

  const std::size_t page_bytes_;
  Fd fd_;
  std::uint8_t* pages_ = nullptr;
  SidebandRing ring_;
  SidebandFilter filter_;
};

void TellsOfDescendants() {
  SidebandFilter filter;
  filter.Set(Pids({1}), 0);
  CHECK_EQUAL(Fork(filter, 2, 1), "fork 2");
  CHECK_EQUAL(Fork(filter, 3, 2), "fork 3");
  CHECK_EQUAL(Fork(filter, 4, 9), "");
  CHECK_EQUAL(Fork(filter, 5, 4), "");
}

void TellsOfGrandchildrenReadFirst() {
  SidebandFilter filter;
  filter.Set(Pids({1}), 0);
  CHECK_EQUAL(Fork(filter, 4, 3), "");
  CHECK_EQUAL(Fork(filter, 3, 2), "");
  CHECK_EQUAL(Fork(filter, 2, 1), "fork 2, fork 3, fork 4");
}

void TellsOfForksBeforeTheFilterOnce() {
  SidebandFilter filter;
  filter.Set(Pids({7}), 0);
  CHECK_EQUAL(Fork(filter, 2, 1), "");
  CHECK_EQUAL(Fork(filter, 3, 2), "");
  CHECK_EQUAL(Text(filter.Set(Pids({7, 1}), 0)), "fork 2, fork 3");
  CHECK_EQUAL(Text(filter.Set(Pids({7, 1, 2}), 0)), "");
}

void ForgetsAfterAWhile() {
  SidebandFilter filter;
  filter.Set(Pids({1}), 0);
  CHECK_EQUAL(Fork(filter, 2, 1), "fork 2");
  CHECK_EQUAL(Fork(filter, 4, 3), "");
  CHECK_EQUAL(Fork(filter, 5, 2, 3 * kSecond), "");
  CHECK_EQUAL(Text(filter.Set(Pids({1, 3}), 3 * kSecond)), "");
}

void BelievesTheLatestForkOfAPid() {
  SidebandFilter filter;
  filter.Set(Pids({1}), 0);
  CHECK_EQUAL(Fork(filter, 2, 1), "fork 2");
  CHECK_EQUAL(Fork(filter, 2, 8), "");
  CHECK_EQUAL(Fork(filter, 3, 2), "");
}

void RemembersABoundedNumber() {
  SidebandFilter filter;
  filter.Set(Pids({1}), 0);
  CHECK_EQUAL(Fork(filter, 3, 2), "");
  for (int pid = 10; pid < 10 + 1024; pid++) Fork(filter, pid, 9);
  CHECK_EQUAL(Fork(filter, 2, 1), "fork 2");
}

void MatchesByInodeOrName() {
  FakeRing ring;
  ring.MapRecord(10, 99, "/other", 8);
  ring.MapRecord(11, 98, "/usr/lib/lib.so", 16);
  ring.MapRecord(12, 98, "/usr/lib/lib.so (deleted)", 32);
  ring.MapRecord(13, 98, "/usr/lib.so/lib", 16);
  ring.MapRecord(14, 98, "lib.so", 8);
  ring.MapRecord(0, 99, "/usr/lib/lib.so", 16);
  CHECK_EQUAL(ring.Read(), "map 10, map 11, map 12");
}

void ReadsRecordsThatWrap() {
  for (std::size_t before = 8; before <= 104; before += 8) {
    FakeRing ring;
    ring.StartAt((std::uint64_t{1} << 40) + ring.bytes() - before);
    ring.MapRecord(10, 98, "/usr/lib/lib.so", 16);
    ring.ForkRecord(2, 1);
    CHECK_EQUAL(ring.Read(), "map 10, fork 2");
  }
}

void IgnoresThreadsAndOtherRecords() {
  FakeRing ring;
  ring.Record(PERF_RECORD_FORK, 32, {1, 1, 5, 1, 0, 0});
  ring.Record(PERF_RECORD_FORK, 32, {0, 1, 0, 1, 0, 0});
  ring.Record(PERF_RECORD_EXIT, 32, {2, 1, 2, 1, 0, 0});
  ring.Record(PERF_RECORD_FORK, 16, {2, 1});
  ring.Record(PERF_RECORD_MMAP2, 72, {10, 10, 0, 0, 0, 0, 0, 0, 8, 1, 99, 0, 0, 0, 5, 2});
  CHECK_EQUAL(ring.Read(), "");
}

void ReadsPathsWithoutEnd() {
  FakeRing ring;
  ring.MapRecord(10, 98, "/lib.so", 7 + 1);
  ring.MapRecord(11, 98, "//lib.so", 8);
  CHECK_EQUAL(ring.Read(), "map 10, map 11");
}

void SaysWhatIsLost() {
  FakeRing ring;
  ring.Record(PERF_RECORD_LOST, 24, {0, 0, 5, 0});
  ring.ForkRecord(2, 1);
  CHECK_EQUAL(ring.Read(), "lost, fork 2");
  FakeRing full;
  for (std::size_t at = 0; at < full.bytes(); at += 32) full.ForkRecord(2, 9);
  CHECK_EQUAL(full.Read(), "lost");
  CHECK_EQUAL(full.Read(), "");
}

// Whatever is in the ring, nothing outside of it is read, and reading ends.
void SurvivesGarbage() {
  for (const std::uint16_t size : {0, 4, 7, 48, 65535}) {
    FakeRing ring;
    ring.Record(PERF_RECORD_FORK, 32, {2, 1, 2, 1, 0, 0});
    const perf_event_header header{PERF_RECORD_FORK, 0, size};
    ring.Write(&header, sizeof header);
    CHECK_EQUAL(ring.Read(), "fork 2, lost");
    ring.ForkRecord(3, 1);
    CHECK_EQUAL(ring.Read(), "fork 3");
  }
  std::mt19937 random(1);
  for (int round = 0; round < 200; round++) {
    FakeRing ring;
    ring.StartAt(random() & ~7U);
    for (std::size_t at = 0; at < ring.bytes(); at += 8) {
      const std::uint32_t words[2] = {static_cast<std::uint32_t>(random() % 12), static_cast<std::uint32_t>(random() % 256) << 16};
      ring.Write(words, sizeof words);
    }
    if (ring.Read() == "not read to the end") CHECK_EQUAL(std::string("garbage"), "read to the end");
  }
}

struct Case {
  const char* name;
  void (*run)();
};

constexpr Case kCases[] = {
    {"tells of children and of their children", TellsOfDescendants},
    {"tells of a grandchild that is read before its parent", TellsOfGrandchildrenReadFirst},
    {"tells of forks that were read before their parent was named, once", TellsOfForksBeforeTheFilterOnce},
    {"forgets forks after a while", ForgetsAfterAWhile},
    {"believes the latest fork of a pid", BelievesTheLatestForkOfAPid},
    {"remembers a bounded number of forks", RemembersABoundedNumber},
    {"matches mappings by inode or by name", MatchesByInodeOrName},
    {"reads records that wrap around the ring", ReadsRecordsThatWrap},
    {"ignores threads, and records it does not know", IgnoresThreadsAndOtherRecords},
    {"reads paths that have no end", ReadsPathsWithoutEnd},
    {"says that something is lost, also where only the ring is full", SaysWhatIsLost},
    {"survives garbage", SurvivesGarbage},
};

}  // namespace

int main(int count, char** arguments) {
  const std::string wanted = count == 2 ? arguments[1] : "--list";
  for (const Case& each : kCases) {
    if (wanted == "--list") {
      std::puts(each.name);
    } else if (wanted == each.name) {
      each.run();
      return 0;
    }
  }
  return wanted == "--list" ? 0 : 2;
}
