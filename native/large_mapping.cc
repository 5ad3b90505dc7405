#include "large_mapping.h"

#include <sys/mman.h>
#include <time.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <utility>

namespace uprobe {

namespace {

// Mapped in about 0.3 ms. Each piece is a line of /proc/self/maps, of which the largest ring has 257; 65,530 are permitted (vm.max_map_count).
constexpr std::size_t kPieceBytes = std::size_t{16} << 20;

// A thread that waits for the lock has to wake up to get it. Until then whoever asks is given it, and that would be us again, for 4 ms (RWSEM_WAIT_TIMEOUT, kernel/locking/rwsem.c).
constexpr timespec kPause{0, 50'000};

// Calls with the offset and the size of one piece after another, as long as that answers true; whether it always did.
template <typename Step>
bool ForEachPiece(std::size_t bytes, Step step) {
  for (std::size_t at = 0; at < bytes; at += kPieceBytes) {
    if (at > 0) nanosleep(&kPause, nullptr);
    if (!step(at, std::min(kPieceBytes, bytes - at))) return false;
  }
  return true;
}

}  // namespace

LargeMapping::LargeMapping(int fd, std::size_t offset, std::size_t bytes) {
  // Room for all pieces first, in which nobody else can put anything.
  void* const room = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (room == MAP_FAILED) return;
  LargeMapping mapping;
  mapping.address_ = room;
  mapping.bytes_ = bytes;
  auto* const start = static_cast<std::uint8_t*>(room);
  const bool mapped = ForEachPiece(bytes, [=](std::size_t at, std::size_t piece) {
    return mmap(start + at, piece, PROT_READ, MAP_SHARED | MAP_FIXED, fd, static_cast<off_t>(offset + at)) != MAP_FAILED;
  });
  if (!mapped) {
    const int error = errno;
    mapping = LargeMapping();
    errno = error;
    return;
  }
  // Refused only for want of memory; then forking is slow.
  madvise(room, bytes, MADV_DONTFORK);
  *this = std::move(mapping);
}

LargeMapping::LargeMapping(LargeMapping&& other) noexcept : address_(std::exchange(other.address_, nullptr)), bytes_(other.bytes_) {}

LargeMapping& LargeMapping::operator=(LargeMapping&& other) noexcept {
  std::swap(address_, other.address_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

LargeMapping::~LargeMapping() {
  if (address_ == nullptr) return;
  auto* const start = static_cast<std::uint8_t*>(address_);
  ForEachPiece(bytes_, [=](std::size_t at, std::size_t piece) {
    munmap(start + at, piece);
    return true;
  });
}

}  // namespace uprobe
