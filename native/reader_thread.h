// The thread that reads the ring of one tracer and watches its targets. It knows nothing of JavaScript: it keeps what it read until it is
// taken, and rings a bell.
//
// Pace. Waking is dear on both sides: to the traced program, whose hit does the waking, and to us. So:
//   * The thread sleeps without a timeout while the ring is empty: an idle agent uses no CPU.
//   * A hit after a silence wakes it, and is read at once. So are a few more (kReadsAtOnce), since hits that come by chance often come in
//     twos and threes; then one read an interval is allowed.
//   * A thread that has used up what it is allowed lets no hit wake it (BpfRing::Release), but comes back by itself when the interval is
//     over. If it then finds nothing, it lets itself be woken again (BpfRing::Listen).
//   * A program that finds the ring a quarter full wakes it by force, and it reads before its time.
//   Under load this comes to one read an interval, and no wake-up by a hit. The interval is a mean: reads that were late are caught up with.
//
// Back-pressure. What waits for JavaScript is bounded. At the bound the thread stops reading and leaves the ring to fill, where the
// programs count what they lose; it goes on when something has been taken.
#pragma once

#include <sys/epoll.h>

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "bpf_ring.h"
#include "fd.h"
#include "result.h"
#include "sideband.h"
#include "task_watch.h"
#include "thread.h"

namespace uprobe {

enum class WatchKind { kPidfd, kTask, kSideband };

struct WatchEvent {
  enum class Kind { kReadable, kHangup, kExec, kMap, kFork, kLost, kOffline };
  std::uint32_t watch;
  Kind kind;
  int pid = 0;  // for kMap and kFork
};

class ReaderThread {
 public:
  struct Options {
    int flush_interval_ms;
    std::size_t pending_limit_bytes;
    std::function<void()> ring_bell;  // called on the thread, without a lock held
  };

  static Result<std::unique_ptr<ReaderThread>> Start(BpfRing ring, Options options);

  // Stops the thread and joins it; the bell does not ring any more. Idempotent.
  void Stop();
  // Stops it, and unmaps the ring, which takes long if it is large. On whatever thread.
  ~ReaderThread() { Stop(); }
  ReaderThread(const ReaderThread&) = delete;
  ReaderThread& operator=(const ReaderThread&) = delete;

  int tid() const { return thread_.tid(); }

  // What waits, oldest first, in chunks of at most kChunkBytes.
  std::optional<Chunk> Take();
  bool HasChunks();
  std::vector<WatchEvent> TakeEvents();
  bool HasEvents();

  // Asks for everything up to what the kernel has reserved by now; returns that position. The bell rings once offered() has reached it.
  std::uint64_t RequestDrain();
  // The ring position up to which everything has been offered to Take.
  std::uint64_t offered();

  // Takes `fd` over, and returns the watch's number; on a failure `fd` stays open in the caller's hands.
  // `sideband_pages` is the size of the ring of a kSideband event.
  Result<std::uint32_t> Watch(Fd& fd, WatchKind kind, std::size_t sideband_pages);
  void Unwatch(std::uint32_t number);
  // Which records of all kSideband events become events.
  void SetSidebandFilter(SidebandFilter::Wanted wanted);

 private:
  struct Watched {
    Fd fd;
    std::optional<TaskWatch> task;  // of a kTask
    std::optional<SidebandRing> sideband;  // of a kSideband
  };

  ReaderThread(BpfRing ring, Options options) : options_(std::move(options)), ring_(std::move(ring)), offered_(ring_.consumed()) {}

  // On any thread.
  void Wake();
  // On the reading thread.
  void Run();
  void HandleWatch(std::uint32_t number, std::uint32_t readiness);
  int Sleep(std::int64_t timeout_ns, epoll_event* events, int max_events);
  bool Read();
  bool Draining();
  void Offer(Chunk chunk);
  bool PauseUntilTaken();
  void PushSidebandLocked(std::uint32_t number, const std::vector<SidebandEvent>& found);
  std::size_t RoomLocked() const;

  const Options options_;
  const std::shared_ptr<ChunkPool> pool_ = std::shared_ptr<ChunkPool>(new ChunkPool());  // outlived by chunks that JavaScript has
  Fd epoll_;
  Fd control_;  // an eventfd: look at the members under the lock
  BpfRing ring_;

  // The reading thread's own.
  bool ready_ = true;   // there may be something to read: come back without being woken
  bool fine_timeout_ = true;  // the kernel takes timeouts in nanoseconds
  bool paused_ = false;  // at the bound: the ring's wake-ups are switched off

  std::mutex mutex_;  // guards what follows
  bool stop_ = false;
  std::deque<Chunk> pending_;
  std::size_t pending_bytes_ = 0;
  bool full_ = false;  // the thread waits for Take
  bool drain_requested_ = false;
  std::uint64_t drain_target_ = 0;
  std::uint64_t offered_;
  std::map<std::uint32_t, Watched> watches_;
  std::vector<WatchEvent> events_;
  std::size_t sideband_events_ = 0;  // how many of them come from side bands
  SidebandFilter sideband_filter_;
  std::uint32_t next_watch_ = 1;

  Thread thread_;  // last: it uses all the others
};

}  // namespace uprobe
