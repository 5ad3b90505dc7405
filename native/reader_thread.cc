#include "reader_thread.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

namespace uprobe {

namespace {

constexpr std::int64_t kNsPerMs = 1'000'000;
constexpr std::int64_t kNsPerSecond = 1'000'000'000;

// What an epoll event is about: a watch's number, which begins at 1, or one of these.
constexpr std::uint64_t kRing = std::uint64_t{1} << 32;
constexpr std::uint64_t kControl = kRing + 1;

// Edge-triggered: while the thread lets the ring fill for the rest of an interval, "there is data" must not wake it.
constexpr std::uint32_t kRingEvents = EPOLLIN | EPOLLET;

constexpr std::int64_t kRetryNs = 10 * kNsPerMs;

// How many hits in a row, after a silence, are each read at once.
constexpr std::int64_t kReadsAtOnce = 4;

// epoll_pwait2, Linux 5.11; the number is the same on every architecture. The C library may be older, and so may its headers.
constexpr long kEpollPwait2 = 441;
struct KernelTimespec {
  std::int64_t seconds, nanoseconds;
};

// How many events of side bands wait at most: a machine that forks without end must not fill our memory while JavaScript is busy.
constexpr std::size_t kMaxSidebandEvents = 4096;

std::int64_t NowNs() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<std::int64_t>(now.tv_sec) * kNsPerSecond + now.tv_nsec;
}

bool AddToEpoll(int epoll, int fd, std::uint32_t events, std::uint64_t about) {
  epoll_event event{};
  event.events = events;
  event.data.u64 = about;
  return epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) == 0;
}

}  // namespace

Result<std::unique_ptr<ReaderThread>> ReaderThread::Start(BpfRing ring, Options options) {
  // Not make_unique: the constructor is private.
  std::unique_ptr<ReaderThread> reader(new ReaderThread(std::move(ring), std::move(options)));
  reader->epoll_ = Fd(epoll_create1(EPOLL_CLOEXEC));
  if (!reader->epoll_.valid()) return LastFailure("epoll_create1");
  reader->control_ = Fd(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!reader->control_.valid()) return LastFailure("eventfd");
  if (!AddToEpoll(reader->epoll_.get(), reader->ring_.fd(), kRingEvents, kRing) ||
      !AddToEpoll(reader->epoll_.get(), reader->control_.get(), EPOLLIN, kControl)) {
    return LastFailure("epoll_ctl");
  }

  ReaderThread* const self = reader.get();
  Result<Thread> thread = Thread::Start("uprobe-reader", [self] { self->Run(); });
  if (const Failure* failure = thread.failure()) return *failure;
  reader->thread_ = std::move(thread.value());
  return reader;
}

void ReaderThread::Stop() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
  }
  Wake();
  thread_.Join();
}

void ReaderThread::Wake() {
  const std::uint64_t one = 1;
  // Refused only if the counter is at its limit, and then the thread is awake.
  [[maybe_unused]] const ssize_t written = write(control_.get(), &one, sizeof one);
}

// ---- what other threads call

std::optional<Chunk> ReaderThread::Take() {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (pending_.empty()) return std::nullopt;
  Chunk chunk = std::move(pending_.front());
  pending_.pop_front();
  pending_bytes_ -= chunk.size();
  if (std::exchange(full_, false)) Wake();
  return chunk;
}

bool ReaderThread::HasChunks() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return !pending_.empty();
}

std::vector<WatchEvent> ReaderThread::TakeEvents() {
  const std::lock_guard<std::mutex> lock(mutex_);
  sideband_events_ = 0;
  return std::exchange(events_, {});
}

bool ReaderThread::HasEvents() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return !events_.empty();
}

std::uint64_t ReaderThread::RequestDrain() {
  const std::uint64_t target = ring_.produced();
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    drain_requested_ = true;
    drain_target_ = std::max(drain_target_, target);
  }
  Wake();
  return target;
}

std::uint64_t ReaderThread::offered() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return offered_;
}

Result<std::uint32_t> ReaderThread::Watch(Fd& fd, WatchKind kind, std::size_t sideband_pages) {
  Watched watched;
  if (kind == WatchKind::kTask) {
    // Mapped first: perf_poll answers EPOLLHUP for an event without a ring.
    Result<TaskWatch> task = TaskWatch::Map(fd.get());
    if (const Failure* failure = task.failure()) return *failure;
    watched.task = std::move(task.value());
  } else if (kind == WatchKind::kSideband) {
    Result<SidebandRing> ring = SidebandRing::Map(fd.get(), sideband_pages);
    if (const Failure* failure = ring.failure()) return *failure;
    watched.sideband = std::move(ring.value());
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  const std::uint32_t number = next_watch_;
  if (!AddToEpoll(epoll_.get(), fd.get(), EPOLLIN, number)) return LastFailure("epoll_ctl");
  next_watch_++;
  watched.fd = std::move(fd);
  watches_.emplace(number, std::move(watched));
  return number;
}

void ReaderThread::Unwatch(std::uint32_t number) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = watches_.find(number);
  if (found == watches_.end()) return;
  // By hand, because closing alone would not do it while a child that is about to exec has a copy of the descriptor.
  epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, found->second.fd.get(), nullptr);
  watches_.erase(found);
}

void ReaderThread::SetSidebandFilter(SidebandFilter::Wanted wanted) {
  bool ring = false;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto sideband = std::find_if(watches_.begin(), watches_.end(), [](const auto& watch) { return watch.second.sideband.has_value(); });
    const std::vector<SidebandEvent> missed = sideband_filter_.Set(std::move(wanted), NowNs());
    // Any of the side bands will do: which of them saw the fork matters to nobody.
    if (sideband != watches_.end()) PushSidebandLocked(sideband->first, missed);
    ring = !events_.empty();
  }
  if (ring) options_.ring_bell();
}

// ---- what the reading thread does

void ReaderThread::Run() {
  const std::int64_t interval_ns = options_.flush_interval_ms * kNsPerMs;
  const std::uint64_t urgent_backlog = ring_.bytes() / 4;
  // The generic cell rate algorithm (ITU-T I.371): each read moves `due` on by an interval, and is allowed until `due` is so far ahead.
  const std::int64_t ahead_ns = (kReadsAtOnce - 1) * interval_ns;
  std::int64_t due_ns = NowNs();
  bool deaf = false;
  for (;;) {
    std::int64_t timeout_ns = -1;
    if (ready_ && !paused_) timeout_ns = std::max<std::int64_t>(due_ns - ahead_ns - NowNs(), 0);
    if (deaf) timeout_ns = kRetryNs;
    epoll_event events[16];
    // Signals are blocked on this thread; what is left of EINTR (a debugger) just goes round.
    const int count = Sleep(timeout_ns, events, 16);
    for (int index = 0; index < count; index++) {
      const std::uint64_t about = events[index].data.u64;
      if (about == kRing) {
        ready_ = true;
      } else if (about == kControl) {
        std::uint64_t ignored;
        [[maybe_unused]] const ssize_t bytes = read(control_.get(), &ignored, sizeof ignored);
      } else {
        HandleWatch(static_cast<std::uint32_t>(about), events[index].events);
      }
    }

    bool urgent = false;
    bool resume = false;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (stop_) break;
      urgent = drain_requested_;
      resume = paused_ && !full_;
    }
    if (resume) {
      // Adding may be refused for want of memory. Then nothing will wake us but the clock.
      deaf = !AddToEpoll(epoll_.get(), ring_.fd(), kRingEvents, kRing);
      paused_ = deaf;
      urgent = true;
    }
    if (paused_) continue;
    const std::int64_t now_ns = NowNs();
    if (!urgent && !(ready_ && (now_ns >= due_ns - ahead_ns || ring_.backlog() >= urgent_backlog))) continue;
    // An interval follows records, so that after a read that found none the next hit is read at once. Reads out of turn do not add up.
    if (Read()) due_ns = std::min(std::max(due_ns, now_ns) + interval_ns, now_ns + ahead_ns + interval_ns);
    // A drain must not wait for the interval: whoever commits the record that it waits for wakes us.
    ready_ = (now_ns < due_ns - ahead_ns && !Draining()) || ring_.Listen();
  }
  // A reader that comes after us goes on at the true position.
  ring_.Listen();
}

int ReaderThread::Sleep(std::int64_t timeout_ns, epoll_event* events, int max_events) {
  if (fine_timeout_ && timeout_ns > 0) {
    const KernelTimespec timeout{timeout_ns / kNsPerSecond, timeout_ns % kNsPerSecond};
    const long count = syscall(kEpollPwait2, epoll_.get(), events, max_events, &timeout, nullptr, 0);
    if (count >= 0 || errno == EINTR) return static_cast<int>(count);
    // Before 5.11 there is no such call, and old sandboxes answer EPERM to calls that they do not know.
    fine_timeout_ = false;
  }
  // Rounded up: rounded down, the last millisecond would be spent turning round.
  return epoll_wait(epoll_.get(), events, max_events, timeout_ns < 0 ? -1 : static_cast<int>((timeout_ns + kNsPerMs - 1) / kNsPerMs));
}

void ReaderThread::HandleWatch(std::uint32_t number, std::uint32_t readiness) {
  bool ring = false;
  {
    // The lock is held throughout, so that Unwatch cannot unmap under us.
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = watches_.find(number);
    if (found == watches_.end()) return;
    Watched& watched = found->second;
    const std::size_t before = events_.size();
    bool ended = false;
    if (watched.task) {
      if (watched.task->TakeExec()) events_.push_back({number, WatchEvent::Kind::kExec});
      ended = (readiness & (EPOLLHUP | EPOLLERR)) != 0;
      if (ended) events_.push_back({number, WatchEvent::Kind::kHangup});
    } else if (watched.sideband) {
      std::vector<SidebandEvent> found;
      watched.sideband->Read(sideband_filter_, NowNs(), found);
      PushSidebandLocked(number, found);
      ended = (readiness & (EPOLLHUP | EPOLLERR)) != 0;
      if (ended) events_.push_back({number, WatchEvent::Kind::kOffline});
    } else {
      ended = true;
      events_.push_back({number, WatchEvent::Kind::kReadable});
    }
    // An ended task stays ready for ever: one report is enough.
    if (ended) epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, watched.fd.get(), nullptr);
    ring = events_.size() != before;
  }
  if (ring) options_.ring_bell();
}

// Beyond the bound there is one more event, which says that the rest is lost.
void ReaderThread::PushSidebandLocked(std::uint32_t number, const std::vector<SidebandEvent>& found) {
  for (const SidebandEvent& event : found) {
    if (sideband_events_ > kMaxSidebandEvents) return;
    const bool last = sideband_events_ == kMaxSidebandEvents;
    sideband_events_++;
    if (last || event.kind == SidebandEvent::Kind::kLost) {
      events_.push_back({number, WatchEvent::Kind::kLost});
    } else {
      events_.push_back({number, event.kind == SidebandEvent::Kind::kMap ? WatchEvent::Kind::kMap : WatchEvent::Kind::kFork, event.pid});
    }
  }
}

// Reads what the ring has now, and no more, so that it does not follow a busy writer without end; whether there was something.
bool ReaderThread::Read() {
  const std::uint64_t before = ring_.consumed();
  const std::uint64_t limit = ring_.produced();
  BpfRing::Stop stop;
  do {
    std::size_t room_bytes = 0;
    bool nothing_waits = false;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      room_bytes = RoomLocked();
      nothing_waits = pending_.empty();
    }
    Chunk chunk(pool_, std::min<std::uint64_t>({limit - ring_.consumed(), room_bytes, kChunkBytes}));
    // Where nothing waits, a record that is larger than the bound is taken all the same: it would never come otherwise.
    stop = ring_.Copy(limit, room_bytes, nothing_waits, chunk);
    ring_.Release();
    Offer(std::move(chunk));
  } while (stop == BpfRing::Stop::kChunk || (stop == BpfRing::Stop::kRoom && !PauseUntilTaken()));
  return ring_.consumed() != before;
}

bool ReaderThread::Draining() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return drain_requested_;
}

// How much may be added to what waits.
std::size_t ReaderThread::RoomLocked() const {
  return options_.pending_limit_bytes - std::min(pending_bytes_, options_.pending_limit_bytes);
}

void ReaderThread::Offer(Chunk chunk) {
  bool ring = !chunk.empty();
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    pending_bytes_ += chunk.size();
    if (!pending_.empty() && pending_.back().size() + chunk.size() <= kChunkBytes) {
      pending_.back().Append(chunk);
    } else if (!chunk.empty()) {
      pending_.push_back(std::move(chunk));
    }
    offered_ = ring_.consumed();
    if (drain_requested_ && offered_ >= drain_target_) {
      drain_requested_ = false;
      ring = true;
    }
  }
  if (ring) options_.ring_bell();
}

// Stops reading until Take makes room; false if it has done so meanwhile.
bool ReaderThread::PauseUntilTaken() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (pending_.empty() || ring_.next_record_bytes() <= RoomLocked()) return false;
    full_ = true;
  }
  // The programs will soon find the ring a quarter full and wake us at every hit, to no purpose.
  epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, ring_.fd(), nullptr);
  paused_ = true;
  return true;
}

}  // namespace uprobe
