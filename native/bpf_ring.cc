#include "bpf_ring.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <cstring>

namespace uprobe {

namespace {

constexpr std::uint32_t kBusy = 1u << 31;     // BPF_RINGBUF_BUSY_BIT
constexpr std::uint32_t kDiscard = 1u << 30;  // BPF_RINGBUF_DISCARD_BIT

// BPF_OBJ_GET_INFO_BY_FD and the head of its struct bpf_map_info.
constexpr int kObjGetInfo = 15;
constexpr std::uint32_t kMapTypeRingbuf = 27;
struct ObjGetInfo {
  std::uint32_t bpf_fd, info_len;
  std::uint64_t info;
};
struct MapInfo {
  std::uint32_t type, id, key_size, value_size, max_entries, map_flags;
};

// Whether the map is a ring of this size. With another one the mask would be wrong, and we would take payload for headers.
bool IsRing(int map_fd, std::size_t ring_bytes) {
  MapInfo map{};
  ObjGetInfo attributes{static_cast<std::uint32_t>(map_fd), sizeof map, reinterpret_cast<std::uintptr_t>(&map)};
  if (syscall(SYS_bpf, kObjGetInfo, &attributes, sizeof attributes) != 0) return false;
  errno = EINVAL;
  return map.type == kMapTypeRingbuf && map.max_entries == ring_bytes;
}

std::uint32_t PayloadBytes(std::uint32_t header) { return header & ~(kBusy | kDiscard); }

}  // namespace

Result<BpfRing> BpfRing::Map(Fd map, std::size_t ring_bytes) {
  const auto page_bytes = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  if (!IsRing(map.get(), ring_bytes)) return LastFailure("bpf(BPF_OBJ_GET_INFO_BY_FD)");
  BpfRing ring;
  ring.map_ = std::move(map);
  ring.consumer_ = Mapping(ring.fd(), 0, page_bytes, PROT_READ | PROT_WRITE);
  if (!ring.consumer_.valid()) return LastFailure("mmap");
  ring.producer_ = LargeMapping(ring.fd(), page_bytes, page_bytes + 2 * ring_bytes);
  if (!ring.producer_.valid()) return LastFailure("mmap");
  ring.consumer_position_ = static_cast<std::uint64_t*>(ring.consumer_.address());
  ring.producer_position_ = static_cast<const std::uint64_t*>(ring.producer_.address());
  ring.data_ = static_cast<const std::uint8_t*>(ring.producer_.address()) + page_bytes;
  ring.mask_ = ring_bytes - 1;
  // The position is in the map: a reader that comes after another goes on where that one stopped.
  ring.position_ = ring.published_ = __atomic_load_n(ring.consumer_position_, __ATOMIC_RELAXED);
  return ring;
}

// Pairs with the xchg() of the header in bpf_ringbuf_commit: once BUSY is gone, the payload is there.
std::uint32_t BpfRing::LoadHeader() const {
  return __atomic_load_n(reinterpret_cast<const std::uint32_t*>(data_ + (position_ & mask_)), __ATOMIC_ACQUIRE);
}

std::size_t BpfRing::next_record_bytes() const { return RecordKind::Bytes(PayloadBytes(LoadHeader())); }

BpfRing::Stop BpfRing::Copy(std::uint64_t limit, std::size_t room_bytes, bool at_least_one, Chunk& chunk) {
  Stop stop = Stop::kLimit;
  // Records that follow each other are copied together, from here on.
  std::uint64_t from = position_;
  RecordKind kind;
  std::size_t bytes = 0;
  while (position_ != limit) {
    const std::uint32_t header = LoadHeader();
    if ((header & kBusy) != 0) {
      stop = Stop::kBusy;
      break;
    }
    const std::uint32_t payload_bytes = PayloadBytes(header);
    const std::size_t record_bytes = RecordKind::Bytes(payload_bytes);
    if ((header & kDiscard) != 0) {
      Append(from, kind, chunk);
      from = position_ + record_bytes;
    } else {
      if (bytes + record_bytes > room_bytes && !(bytes == 0 && at_least_one)) {
        stop = Stop::kRoom;
        break;
      }
      if (bytes + record_bytes > kChunkBytes && bytes != 0) {
        stop = Stop::kChunk;
        break;
      }
      bytes += record_bytes;
      kind.Add({data_ + (position_ & mask_) + RecordKind::kHeadBytes, payload_bytes});
    }
    position_ += record_bytes;
  }
  Append(from, kind, chunk);
  return stop;
}

// Appends what lies between `from` and the own position. It is less than the ring, which is mapped twice, so it does not wrap.
void BpfRing::Append(std::uint64_t from, const RecordKind& kind, Chunk& chunk) const {
  chunk.Append(data_ + (from & mask_), position_ - from, kind);
}

void BpfRing::Release() {
  // Where nothing was read since, there is nothing to give back, and the position may not go backwards.
  if (position_ == published_) return;
  published_ = position_;
  // Release: our reads of the records happen before the kernel writes over them; pairs with smp_load_acquire(&rb->consumer_pos) in
  // __bpf_ringbuf_reserve.
  //
  // The kernel compares what it finds here with the position of the record that it commits, both modulo the size. No unread record can lie at ours minus 8: the
  // first lies at ours, and to come round to there, one would have to begin where not even a header fits any more.
  __atomic_store_n(consumer_position_, position_ - RecordKind::kHeadBytes, __ATOMIC_RELEASE);
}

bool BpfRing::Listen() {
  published_ = position_;
  // Release: as in Release.
  __atomic_store_n(consumer_position_, position_, __ATOMIC_RELEASE);
  // A full barrier between the store of our position and the look at what is ready. The kernel does the same crosswise:
  // bpf_ringbuf_commit clears BUSY with xchg(), a full barrier, and then loads consumer_pos. So one of the two sees the other: either
  // we see the record here, or the kernel sees that we wait for it, and wakes us.
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
  return produced() != position_ && (LoadHeader() & kBusy) == 0;
}

}  // namespace uprobe
