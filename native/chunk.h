// A piece of memory for records, on its way from the ring to JavaScript; and the pool that lends it.
//
// Memory that is fresh from the kernel costs a page fault for each 4 KiB, which is more than all that is done with the records in it. So a block goes back
// to the pool when V8's collector finds that no hit refers to it any more.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "record_kind.h"

namespace uprobe {

// A chunk stays below this, unless it is a single record. It is so small that a processor still has it in its cache when JavaScript reads it.
constexpr std::size_t kChunkBytes = 1 << 18;

class ChunkPool {
 public:
  // Smaller blocks come from the heap, and go back there.
  static constexpr std::size_t kSmallestBytes = kChunkBytes >> 3;

  ChunkPool() = default;
  ~ChunkPool();
  ChunkPool(const ChunkPool&) = delete;
  ChunkPool& operator=(const ChunkPool&) = delete;

  // A block with room for so many bytes, and hardly more. Any thread may take and give.
  struct Block {
    std::uint8_t* data = nullptr;
    std::size_t bytes = 0;
  };
  Block Take(std::size_t bytes);
  void Give(Block block);

 private:
  static constexpr std::size_t kStepBytes = kChunkBytes >> 4;

  std::mutex mutex_;
  std::array<std::vector<std::uint8_t*>, kChunkBytes / kStepBytes + 1> free_;  // by size, in steps
  std::size_t free_bytes_ = 0;
};

// Records as JavaScript gets them, which is as they lie in the ring: u32 payload bytes, u32 of the kernel's own, payload, padding to 8.
class Chunk {
 public:
  // Room for so many bytes, from the pool.
  Chunk(std::shared_ptr<ChunkPool> pool, std::size_t bytes);
  ~Chunk();
  Chunk(Chunk&& other) noexcept;
  Chunk& operator=(Chunk&& other) noexcept;

  std::uint8_t* data() const { return block_.data; }
  std::size_t size() const { return size_; }
  std::size_t capacity() const { return block_.bytes; }
  bool empty() const { return size_ == 0; }

  // What the records in it have in common.
  const RecordKind& kind() const { return kind_; }

  // Appends whole records of a kind.
  void Append(const std::uint8_t* bytes, std::size_t count, const RecordKind& kind);
  void Append(const Chunk& other) { Append(other.data(), other.size(), other.kind_); }

 private:
  std::shared_ptr<ChunkPool> pool_;
  ChunkPool::Block block_;
  std::size_t size_ = 0;
  RecordKind kind_;
};

}  // namespace uprobe
