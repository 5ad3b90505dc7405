// Unit tests of native/counter_store.cc and native/vma.cc, without Node: counter-store.test.ts compiles this with each sanitizer and runs every case.
//
//     counter_store_test --list     the names of the cases, one a line
//     counter_store_test NAME       runs one; silent and 0 if it holds
//
// The counter lies where a real one does: in a private, writable mapping of a file, in a child process that maps, protects, unmaps, execs and exits as it is
// told. What is in it is written and read by means of the test's own.

#include "../../native/counter_store.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "../../native/fd.h"

namespace {

using uprobe::CounterStore;
using uprobe::ExpectedMapping;
using uprobe::Failure;
using uprobe::Fd;
using uprobe::Nothing;
using uprobe::Result;
using uprobe::Vma;
using uprobe::VmaFinder;
using Way = VmaFinder::Way;

[[noreturn]] void Fail(int line, const std::string& what) {
  std::fprintf(stderr, "counter_store_test.cc:%d: %s\n", line, what.c_str());
  std::exit(1);
}

#define CHECK(condition) \
  do {                   \
    if (!(condition)) Fail(__LINE__, "not so: " #condition); \
  } while (false)

void CheckEqual(int line, const char* text, long long actual, long long expected) {
  if (actual != expected) Fail(line, std::string(text) + " is " + std::to_string(actual) + ", not " + std::to_string(expected));
}
#define CHECK_EQUAL(actual, expected) CheckEqual(__LINE__, #actual, static_cast<long long>(actual), static_cast<long long>(expected))

// What came of a store: the value, or the negative errno.
int Outcome(Result<std::uint16_t> result) {
  const Failure* const failure = result.failure();
  return failure == nullptr ? result.value() : -failure->number;
}
int Outcome(Result<Nothing> result) {
  const Failure* const failure = result.failure();
  return failure == nullptr ? 0 : -failure->number;
}

constexpr std::size_t kPage = 4096;
constexpr std::size_t kCounterInPage = 0x100;
constexpr off_t kMappedOffset = kPage;

std::string TemporaryPath(const std::string& name) {
  const char* const directory = std::getenv("TMPDIR");
  return std::string(directory == nullptr ? "/tmp" : directory) + "/" + name;
}

// A file of three pages, gone from the file system but not from the mappings.
Fd TemporaryFile() {
  std::string path = TemporaryPath("counter-store-XXXXXX");
  Fd file(mkostemp(path.data(), O_CLOEXEC));
  CHECK(file.valid());
  unlink(path.c_str());
  CHECK(ftruncate(file.get(), 3 * kPage) == 0);
  return file;
}

void* Map(void* address, int protection, int flags, int fd, off_t offset) {
  void* const mapped = mmap(address, kPage, protection, flags, fd, offset);
  CHECK(mapped != MAP_FAILED);
  return mapped;
}

// A process that has a counter in a private mapping of a file, and does what it is told.
class Child {
 public:
  Child() : file_(TemporaryFile()), other_file_(TemporaryFile()) {
    int command[2];
    int reply[2];
    CHECK(pipe2(command, O_CLOEXEC) == 0 && pipe2(reply, O_CLOEXEC) == 0);
    // Mapped before the fork, so that both know the address.
    page_ = Map(nullptr, PROT_READ | PROT_WRITE, MAP_PRIVATE, file_.get(), kMappedOffset);
    pid_ = fork();
    CHECK(pid_ >= 0);
    if (pid_ == 0) {
      dup2(command[0], STDIN_FILENO);
      close(command[1]);
      reply_ = Fd(reply[1]);
      Serve();
    }
    close(command[0]);
    close(reply[1]);
    command_ = Fd(command[1]);
    reply_ = Fd(reply[0]);
    munmap(page_, kPage);
    CHECK(Tell('n'));
    mem_ = Fd(open(("/proc/" + std::to_string(pid_) + "/mem").c_str(), O_RDWR | O_CLOEXEC));
    maps_ = Fd(open(("/proc/" + std::to_string(pid_) + "/maps").c_str(), O_RDONLY | O_CLOEXEC));
    CHECK(mem_.valid() && maps_.valid());
    expected_ = MappingAt(Address());
  }
  ~Child() {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;

  std::uint64_t Address() const { return reinterpret_cast<std::uintptr_t>(page_) + kCounterInPage; }
  const ExpectedMapping& expected() const { return expected_; }
  int file() const { return file_.get(); }
  int mem() const { return mem_.get(); }
  int maps() const { return maps_.get(); }

  CounterStore Store(Way way) const { return Store(way, Address(), expected_); }
  CounterStore Store(Way way, std::uint64_t address, const ExpectedMapping& expected) const {
    return CounterStore(CounterStore::Space::kOther, mem_.get(), maps_.get(), address, expected, way);
  }

  // What is mapped at an address, as a tracer that has read maps expects it from then on.
  ExpectedMapping MappingAt(std::uint64_t address) const {
    Result<std::optional<Vma>> found = VmaFinder(maps_.get(), Way::kText).Find(address);
    CHECK(found.failure() == nullptr && found.value());
    const Vma& vma = *found.value();
    return {vma.device_major, vma.device_minor, vma.inode, vma.file_offset + (address - vma.start)};
  }

  void Poke(std::uint16_t value) const { CHECK(pwrite(mem_.get(), &value, sizeof value, static_cast<off_t>(Address())) == sizeof value); }
  int Peek() const {
    std::uint16_t value = 0;
    CHECK(pread(mem_.get(), &value, sizeof value, static_cast<off_t>(Address())) == sizeof value);
    return value;
  }
  // Whether the page of the counter is still the file's, not a copy of the process (Documentation/admin-guide/mm/pagemap.rst, bits 63 and 61).
  bool PageIsOfFile() const {
    const Fd pagemap(open(("/proc/" + std::to_string(pid_) + "/pagemap").c_str(), O_RDONLY | O_CLOEXEC));
    std::uint64_t entry = 0;
    CHECK(pread(pagemap.get(), &entry, sizeof entry, static_cast<off_t>(Address() / kPage * sizeof entry)) == sizeof entry);
    CHECK((entry >> 63 & 1) == 1);
    return (entry >> 61 & 1) == 1;
  }

  // Gives a command (see Obey) and waits until it is done; false if the process answers no more, because it is another program or gone.
  bool Tell(char command) {
    Begin(command);
    return IsDone();
  }
  // Gives a command that goes on until End.
  void Begin(char command) { CHECK(write(command_.get(), &command, 1) == 1); }
  void End() {
    Begin('n');
    CHECK(IsDone() && IsDone());
  }

  void Exec() { CHECK(!Tell('x')); }
  void Exit() {
    CHECK(!Tell('q'));
    int status = 0;
    CHECK(waitpid(pid_, &status, 0) == pid_ && WIFEXITED(status));
  }

 private:
  [[noreturn]] void Serve() {
    for (char command = 0; read(STDIN_FILENO, &command, 1) == 1;) {
      Obey(command);
      if (write(reply_.get(), "", 1) != 1) break;
    }
    _exit(0);
  }

  bool IsDone() {
    char done;
    return read(reply_.get(), &done, 1) == 1;
  }

  void Obey(char command) {
    auto* const counter = reinterpret_cast<std::uint16_t*>(Address());
    constexpr int kFixed = MAP_PRIVATE | MAP_FIXED;
    constexpr int kReadWrite = PROT_READ | PROT_WRITE;
    switch (command) {
      case 'n':  // looks at the counter, so that its page is there
        __atomic_load_n(counter, __ATOMIC_SEQ_CST);
        break;
      case 'r':
        CHECK(mprotect(page_, kPage, PROT_READ) == 0);
        break;
      case 'w':
        CHECK(mprotect(page_, kPage, kReadWrite) == 0);
        break;
      case 'u':
        CHECK(munmap(page_, kPage) == 0);
        break;
      case 'f':  // another file, at the same offset
        Map(page_, kReadWrite, kFixed, other_file_.get(), kMappedOffset);
        break;
      case 'o':  // another offset of the same file
        Map(page_, kReadWrite, kFixed, file_.get(), kMappedOffset + kPage);
        break;
      case 's':
        Map(page_, kReadWrite, MAP_SHARED | MAP_FIXED, file_.get(), kMappedOffset);
        break;
      case 'a':
        Map(page_, kReadWrite, kFixed | MAP_ANONYMOUS, -1, 0);
        break;
      case 'z':  // clears the counter without pause until the next command
        while (!CommandWaits()) {
          for (int i = 0; i < 1000; i++) __atomic_store_n(counter, 0, __ATOMIC_SEQ_CST);
        }
        break;
      case 'c':  // counts up and down without pause until the next command, and is then 7 higher
        while (!CommandWaits()) {
          for (int i = 0; i < 1000; i++) {
            __atomic_fetch_add(counter, 1, __ATOMIC_SEQ_CST);
            __atomic_fetch_sub(counter, 1, __ATOMIC_SEQ_CST);
          }
        }
        __atomic_fetch_add(counter, 7, __ATOMIC_SEQ_CST);
        break;
      case 'x':
        execl("/bin/cat", "cat", static_cast<char*>(nullptr));
        _exit(127);
      case 'q':
        _exit(0);
      default:
        _exit(2);
    }
  }

  static bool CommandWaits() {
    pollfd input{STDIN_FILENO, POLLIN, 0};
    return poll(&input, 1, 0) == 1;
  }

  Fd file_, other_file_, command_, reply_, mem_, maps_;
  void* page_ = nullptr;
  pid_t pid_ = -1;
  ExpectedMapping expected_{};
};

constexpr Way kBothWays[] = {Way::kIoctl, Way::kText};

// All that can be done to a counter is refused with `error`.
void CheckRefused(int line, CounterStore store, int error) {
  CheckEqual(line, "read", Outcome(store.Read()), -error);
  CheckEqual(line, "set", Outcome(store.SetMsb()), -error);
  CheckEqual(line, "clear", Outcome(store.ClearMsb()), -error);
  CheckEqual(line, "replace", Outcome(store.Replace(0, 1)), -error);
  Result<std::uint16_t> refused = store.SetMsb();
  CHECK(std::strcmp(refused.failure()->syscall, "counter_store") == 0);
}
#define CHECK_REFUSED(store, error) CheckRefused(__LINE__, store, error)

void SetsAndClears() {
  for (const Way way : kBothWays) {
    Child child;
    CounterStore store = child.Store(way);
    CHECK_EQUAL(Outcome(store.Read()), 0);
    CHECK_EQUAL(Outcome(store.SetMsb()), 0x8000);
    CHECK_EQUAL(child.Peek(), 0x8000);
    CHECK_EQUAL(Outcome(store.SetMsb()), 0x8000);
    CHECK_EQUAL(Outcome(store.Read()), 0x8000);
    CHECK_EQUAL(Outcome(store.ClearMsb()), 0);
    CHECK_EQUAL(Outcome(store.ClearMsb()), 0);
    CHECK_EQUAL(child.Peek(), 0);
  }
}

void KeepsTheCount() {
  for (const Way way : kBothWays) {
    Child child;
    CounterStore store = child.Store(way);
    for (const int count : {1, 3, 0xff}) {
      child.Poke(static_cast<std::uint16_t>(count));
      CHECK_EQUAL(Outcome(store.SetMsb()), 0x8000 + count);
      CHECK_EQUAL(Outcome(store.ClearMsb()), count);
      CHECK_EQUAL(child.Peek(), count);
    }
  }
}

void KeepsACountThatChanges() {
  Child child;
  CounterStore store = child.Store(Way::kIoctl);
  child.Begin('c');
  for (int i = 0; i < 50'000; i++) {
    CHECK((Outcome(store.SetMsb()) & 0x8000) != 0);
    CHECK((Outcome(store.ClearMsb()) & 0x8000) == 0);
  }
  child.End();
  CHECK_EQUAL(child.Peek(), 7);
}

void LeavesTheFileAlone() {
  Child child;
  CHECK_EQUAL(Outcome(child.Store(Way::kIoctl).SetMsb()), 0x8000);
  std::uint16_t in_file = 1;
  CHECK(pread(child.file(), &in_file, sizeof in_file, kMappedOffset + kCounterInPage) == sizeof in_file);
  CHECK_EQUAL(in_file, 0);
}

void WritesNothingWithoutNeed() {
  Child child;
  CounterStore store = child.Store(Way::kIoctl);
  CHECK_EQUAL(Outcome(store.ClearMsb()), 0);
  CHECK(child.PageIsOfFile());
  CHECK_EQUAL(Outcome(store.SetMsb()), 0x8000);
  CHECK(!child.PageIsOfFile());
}

void WritesMemoryOfNoFile() {
  for (const Way way : kBothWays) {
    Child child;
    CHECK(child.Tell('a'));
    CounterStore store = child.Store(way, child.Address(), {0, 0, 0, 12345});
    CHECK_EQUAL(Outcome(store.SetMsb()), 0x8000);
    CHECK_EQUAL(child.Peek(), 0x8000);
  }
}

void RefusesOddAddress() {
  Child child;
  ExpectedMapping expected = child.expected();
  expected.file_offset++;
  for (const Way way : kBothWays) CHECK_REFUSED(child.Store(way, child.Address() + 1, expected), EINVAL);
}

void RefusesAfterExit() {
  Child child;
  child.Exit();
  for (const Way way : kBothWays) CHECK_REFUSED(child.Store(way), ESRCH);
}

void RefusesAfterExec() {
  Child child;
  child.Poke(0x8000);
  child.Exec();
  for (const Way way : kBothWays) CHECK_REFUSED(child.Store(way), ESRCH);
}

// The process may end, or unmap, between the question and the store. Two processes stand for the two moments: maps of one, memory of the other.
void RefusesWhatGoesMeanwhile() {
  const Child before;
  Child after;
  CHECK(before.Address() == after.Address());
  CounterStore store(CounterStore::Space::kOther, after.mem(), before.maps(), before.Address(), before.expected());
  CHECK_EQUAL(Outcome(store.SetMsb()), 0x8000);
  CHECK_EQUAL(after.Peek(), 0x8000);
  CHECK(after.Tell('u'));
  CHECK_REFUSED(store, EFAULT);
  after.Exit();
  CHECK_REFUSED(store, ESRCH);
}

void RefusesWhereNothingIsMapped() {
  Child child;
  CHECK(child.Tell('u'));
  for (const Way way : kBothWays) {
    CHECK_REFUSED(child.Store(way), EFAULT);
    // The zero page, and beyond every mapping of a user's.
    CHECK_REFUSED(child.Store(way, 0x100, child.expected()), EFAULT);
    CHECK_REFUSED(child.Store(way, 0x7000'0000'0000'0000, child.expected()), EFAULT);
  }
}

void RefusesAnotherPlace(char command) {
  Child child;
  CHECK(child.Tell(command));
  for (const Way way : kBothWays) CHECK_REFUSED(child.Store(way), ESTALE);
  CHECK_EQUAL(child.Peek(), 0);
}
void RefusesAnotherFile() { RefusesAnotherPlace('f'); }
// An inode's number says nothing on another device.
void RefusesAnotherDevice() {
  Child child;
  ExpectedMapping other_major = child.expected();
  other_major.device_major++;
  ExpectedMapping other_minor = child.expected();
  other_minor.device_minor++;
  for (const Way way : kBothWays) {
    CHECK_REFUSED(child.Store(way, child.Address(), other_major), ESTALE);
    CHECK_REFUSED(child.Store(way, child.Address(), other_minor), ESTALE);
  }
}
void RefusesAnotherOffset() { RefusesAnotherPlace('o'); }
void RefusesAnonymousForFile() { RefusesAnotherPlace('a'); }

void RefusesFileForAnonymous() {
  Child child;
  for (const Way way : kBothWays) CHECK_REFUSED(child.Store(way, child.Address(), {0, 0, 0, 0}), ESTALE);
}

void RefusesReadOnly() {
  Child child;
  CHECK(child.Tell('r'));
  for (const Way way : kBothWays) CHECK_REFUSED(child.Store(way), EACCES);
  CHECK_EQUAL(child.Peek(), 0);
  CHECK(child.Tell('w'));
  CHECK_EQUAL(Outcome(child.Store(Way::kIoctl).SetMsb()), 0x8000);
}

void RefusesShared() {
  Child child;
  CHECK(child.Tell('s'));
  for (const Way way : kBothWays) CHECK_REFUSED(child.Store(way), EACCES);
  CHECK_EQUAL(child.Peek(), 0);
}

void RefusesOtherBits() {
  Child child;
  for (const int value : {0x0100, 0x4000, 0x7f00, 0x8100, 0xc001, 0xffff}) {
    child.Poke(static_cast<std::uint16_t>(value));
    for (const Way way : kBothWays) {
      CounterStore store = child.Store(way);
      CHECK_EQUAL(Outcome(store.SetMsb()), -ERANGE);
      CHECK_EQUAL(Outcome(store.ClearMsb()), -ERANGE);
      CHECK_EQUAL(Outcome(store.Read()), value);
    }
    CHECK_EQUAL(child.Peek(), value);
  }
}

void NoticesAnotherWriter() {
  Child child;
  CounterStore store = child.Store(Way::kIoctl);
  child.Begin('z');
  bool noticed = false;
  for (int attempt = 0; attempt < 1'000'000 && !noticed; attempt++) {
    const int outcome = Outcome(store.SetMsb());
    CHECK(outcome == 0x8000 || outcome == -EBUSY);
    noticed = outcome == -EBUSY;
  }
  CHECK(noticed);
}

void Replaces() {
  for (const Way way : kBothWays) {
    Child child;
    CounterStore store = child.Store(way);
    child.Poke(0x4103);
    CHECK_EQUAL(Outcome(store.Replace(0x4102, 0)), -EBUSY);
    CHECK_EQUAL(child.Peek(), 0x4103);
    CHECK_EQUAL(Outcome(store.Replace(0x4103, 0x0002)), 0);
    CHECK_EQUAL(child.Peek(), 2);
  }
}

// Both ways of asking for a mapping answer alike, for every mapping and every gap of this process.
void AsksBothWaysAlike() {
  const Fd maps(open("/proc/self/maps", O_RDONLY | O_CLOEXEC));
  // More lines than a page holds, and a name with what a line is made of.
  std::vector<void*> pages;
  for (int i = 0; i < 100; i++) pages.push_back(Map(nullptr, i % 2 == 0 ? PROT_READ : PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  std::string directory = TemporaryPath("counter-store\n0-ffffffffffff rwxp 00000000 00:00 0-XXXXXX");
  CHECK(mkdtemp(directory.data()) != nullptr);
  const std::string path = directory + "/file";
  {
    const Fd file(open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    CHECK(ftruncate(file.get(), 2 * kPage) == 0);
    pages.push_back(Map(nullptr, PROT_READ | PROT_WRITE, MAP_PRIVATE, file.get(), kPage));
    pages.push_back(Map(nullptr, PROT_READ | PROT_WRITE, MAP_SHARED, file.get(), 0));
  }
  unlink(path.c_str());
  rmdir(directory.c_str());
  VmaFinder by_ioctl(maps.get());
  VmaFinder by_text(maps.get(), Way::kText);
  int mappings = 0;
  const auto check = [&](std::uint64_t address) {
    Result<std::optional<Vma>> first = by_ioctl.Find(address);
    Result<std::optional<Vma>> second = by_text.Find(address);
    CHECK(first.failure() == nullptr && second.failure() == nullptr);
    CHECK_EQUAL(first.value().has_value(), second.value().has_value());
    if (!first.value()) return std::uint64_t{0};
    const Vma& a = *first.value();
    const Vma& b = *second.value();
    CHECK(a.start == b.start && a.end == b.end && a.file_offset == b.file_offset && a.inode == b.inode);
    CHECK(a.device_major == b.device_major && a.device_minor == b.device_minor && a.writable == b.writable && a.shared == b.shared);
    mappings++;
    return a.end;
  };
  for (void* const page : pages) {
    const std::uint64_t start = reinterpret_cast<std::uintptr_t>(page);
    CHECK(check(start) != 0);
    CHECK(check(start + kPage - 1) != 0);
  }
  // Of the own code, data and stack, from one mapping's end to the next.
  for (std::uint64_t address : {reinterpret_cast<std::uintptr_t>(&AsksBothWaysAlike), reinterpret_cast<std::uintptr_t>(&mappings)}) {
    while (address != 0) address = check(address);
  }
  CHECK(mappings > 200);
}

// The ioctl came with Linux 6.11. Where there is none the text does, and the kernel is not asked a second time.
void AsksTheWayTheKernelHas() {
  utsname name{};
  uname(&name);
  int major = 0;
  int minor = 0;
  CHECK(std::sscanf(name.release, "%d.%d", &major, &minor) == 2);
  const Fd maps(open("/proc/self/maps", O_RDONLY | O_CLOEXEC));
  VmaFinder finder(maps.get());
  CHECK(finder.Find(reinterpret_cast<std::uintptr_t>(&major)).failure() == nullptr);
  CHECK((finder.way() == Way::kIoctl) == (major > 6 || (major == 6 && minor >= 11)));
}

// In the own process: a counter as the program has it.
std::uint16_t own_counter;

struct OwnStore {
  Fd maps{open("/proc/self/maps", O_RDONLY | O_CLOEXEC)};

  CounterStore At(const void* pointer) const {
    const std::uint64_t address = reinterpret_cast<std::uintptr_t>(pointer);
    Result<std::optional<Vma>> found = VmaFinder(maps.get()).Find(address);
    CHECK(found.failure() == nullptr && found.value());
    const Vma& vma = *found.value();
    return CounterStore(CounterStore::Space::kOwn, -1, maps.get(), address,
                        {vma.device_major, vma.device_minor, vma.inode, vma.file_offset + (address - vma.start)});
  }
};

void WorksInTheOwnProcess() {
  const OwnStore own;
  CounterStore store = own.At(&own_counter);
  CHECK_EQUAL(Outcome(store.SetMsb()), 0x8000);
  CHECK_EQUAL(own_counter, 0x8000);
  CHECK_EQUAL(Outcome(store.SetMsb()), 0x8000);
  CHECK_EQUAL(Outcome(store.Replace(0x8000, 0x8002)), 0);
  CHECK_EQUAL(Outcome(store.Replace(0x8000, 0)), -EBUSY);
  CHECK_EQUAL(Outcome(store.ClearMsb()), 2);
  own_counter = 0x4000;
  CHECK_EQUAL(Outcome(store.SetMsb()), -ERANGE);
  own_counter = 0;
}

void RefusesInTheOwnProcess() {
  const OwnStore own;
  void* const page = Map(nullptr, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CounterStore store = own.At(page);
  CHECK_EQUAL(Outcome(store.SetMsb()), 0x8000);
  CHECK(mprotect(page, kPage, PROT_READ) == 0);
  CHECK_REFUSED(own.At(page), EACCES);
  CHECK(munmap(page, kPage) == 0);
  CHECK_REFUSED(store, EFAULT);
}

// Threads of the program count, as a program with a counter of its own does, and read; none of their counts may be lost, and none of their reads may see a bit
// that was not set.
void KeepsWhatOwnThreadsCount() {
  constexpr int kThreads = 3;
  constexpr int kRounds = 100'000;
  constexpr int kLeft = 5;
  const OwnStore own;
  CounterStore store = own.At(&own_counter);
  bool running = true;
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; i++) {
    threads.emplace_back([] {
      for (int round = 0; round < kRounds; round++) {
        __atomic_fetch_add(&own_counter, 1, __ATOMIC_SEQ_CST);
        __atomic_fetch_sub(&own_counter, 1, __ATOMIC_SEQ_CST);
      }
      __atomic_fetch_add(&own_counter, kLeft, __ATOMIC_SEQ_CST);
    });
  }
  std::thread reader([&running] {
    while (__atomic_load_n(&running, __ATOMIC_SEQ_CST)) CHECK((__atomic_load_n(&own_counter, __ATOMIC_SEQ_CST) & 0x7fff) <= kThreads * kLeft);
  });
  std::thread claimer([&running, &store] {
    while (__atomic_load_n(&running, __ATOMIC_SEQ_CST)) {
      CHECK((Outcome(store.SetMsb()) & 0xff00) == 0x8000);
      CHECK((Outcome(store.ClearMsb()) & 0xff00) == 0);
    }
  });
  for (std::thread& thread : threads) thread.join();
  __atomic_store_n(&running, false, __ATOMIC_SEQ_CST);
  reader.join();
  claimer.join();
  CHECK_EQUAL(own_counter, kThreads * kLeft);
}

struct Case {
  const char* name;
  void (*run)();
};

constexpr Case kCases[] = {
    {"sets and clears bit 15, twice as well as once", SetsAndClears},
    {"keeps the count in the low byte", KeepsTheCount},
    {"keeps a count that the program changes meanwhile", KeepsACountThatChanges},
    {"leaves the file alone", LeavesTheFileAlone},
    {"writes nothing when the bit is as wanted", WritesNothingWithoutNeed},
    {"writes memory of no file where it is expected", WritesMemoryOfNoFile},
    {"refuses an odd address", RefusesOddAddress},
    {"refuses when the process has exited", RefusesAfterExit},
    {"refuses when the process has called exec", RefusesAfterExec},
    {"refuses when the memory goes between the question and the store", RefusesWhatGoesMeanwhile},
    {"refuses where nothing is mapped", RefusesWhereNothingIsMapped},
    {"refuses another file at the address", RefusesAnotherFile},
    {"refuses the same inode on another device", RefusesAnotherDevice},
    {"refuses another offset of the file at the address", RefusesAnotherOffset},
    {"refuses memory of no file where a file is expected", RefusesAnonymousForFile},
    {"refuses a file where memory of no file is expected", RefusesFileForAnonymous},
    {"refuses a read-only mapping", RefusesReadOnly},
    {"refuses a shared mapping", RefusesShared},
    {"refuses other bits in the high byte", RefusesOtherBits},
    {"notices another writer when it reads back", NoticesAnotherWriter},
    {"replaces only what was expected", Replaces},
    {"is told the same of a mapping by ioctl and by text", AsksBothWaysAlike},
    {"asks by ioctl exactly where the kernel has it", AsksTheWayTheKernelHas},
    {"works in the own process", WorksInTheOwnProcess},
    {"refuses in the own process instead of crashing it", RefusesInTheOwnProcess},
    {"keeps what threads of the own process count", KeepsWhatOwnThreadsCount},
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
