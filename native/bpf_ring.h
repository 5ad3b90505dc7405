// The user's side of a BPF_MAP_TYPE_RINGBUF map (kernel/bpf/ringbuf.c).
//
// The map is one consumer page, which we write; one producer page, which the kernel writes; and the data, mapped twice in a row so that
// a record never wraps. Positions are bytes since the beginning of time; they grow for ever and are masked to find the data. A record
// is a header of 8 bytes and its payload, padded to 8:
//
//   u32 length   bit 31 BUSY: reserved by a program that has not committed it yet
//                bit 30 DISCARD: committed, but without content
//   u32 pg_off   the kernel's own
//
// producer_pos moves when a record is reserved, so a record below it can be busy still, and the records behind it have to wait.
//
// Programs commit with flags 0: the kernel then wakes a reader only if that reader had caught up with the very record (bpf_ringbuf_commit).
// So the reader decides by the position that it publishes whether a hit is to wake it:
//   * Listen publishes its true position. It may then sleep for ever exactly if it has seen nothing ready there.
//   * Release publishes a position that lies a little before it, which no record can have. Hits then wake nobody, and cost what they cost in a
//     ring without wake-ups; the reader has to come back by itself.
#pragma once

#include <cstddef>
#include <cstdint>

#include "chunk.h"
#include "fd.h"
#include "large_mapping.h"
#include "mapping.h"
#include "result.h"

namespace uprobe {

class BpfRing {
 public:
  // Maps the ring behind `map`; EINVAL if it is none, or has another size. This takes long for a large ring (large_mapping.h), and so does destroying what it returns.
  static Result<BpfRing> Map(Fd map, std::size_t ring_bytes);

  // Becomes readable when a program wakes the reader.
  int fd() const { return map_.get(); }

  // Why Copy stopped: at `limit`; at a record that is still being written; because the chunk has its size; because there is no room.
  enum class Stop { kLimit, kBusy, kChunk, kRoom };

  // Appends the records from the own position to `limit` to the empty `chunk`, about kChunkBytes of them and at most `room_bytes`; with
  // `at_least_one` the first may be larger than that. Moves the own position, but does not publish it.
  Stop Copy(std::uint64_t limit, std::size_t room_bytes, bool at_least_one, Chunk& chunk);

  // How many bytes of a chunk the record at the own position takes; only after Copy stopped there for kRoom.
  std::size_t next_record_bytes() const;

  // Gives the room up to the own position back to the kernel, and keeps the kernel from waking the reader. (A few bytes of room stay behind, until
  // the next Release or Listen: only a record as large as the whole ring would miss them.)
  void Release();
  // Gives all of the room back; whether a record is ready at the own position. If not, the kernel wakes the reader with the next commit.
  bool Listen();

  // What the kernel has reserved so far. Any thread may ask.
  std::uint64_t produced() const { return __atomic_load_n(producer_position_, __ATOMIC_ACQUIRE); }
  // How far we have read.
  std::uint64_t consumed() const { return position_; }
  // How many bytes of the ring are taken.
  std::uint64_t backlog() const { return produced() - position_; }
  std::size_t bytes() const { return mask_ + 1; }

 private:
  std::uint32_t LoadHeader() const;
  void Append(std::uint64_t from, const RecordKind& kind, Chunk& chunk) const;

  Fd map_;
  Mapping consumer_;
  LargeMapping producer_;
  std::uint64_t* consumer_position_ = nullptr;
  const std::uint64_t* producer_position_ = nullptr;
  const std::uint8_t* data_ = nullptr;
  std::uint64_t mask_ = 0;
  std::uint64_t position_ = 0;
  std::uint64_t published_ = 0;  // the own position when it was published last
};

}  // namespace uprobe
