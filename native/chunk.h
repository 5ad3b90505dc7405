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

  // How large a block is that has room for so many bytes.
  static std::size_t BlockBytes(std::size_t bytes);
  // A block of such a size. Any thread may take and give.
  std::uint8_t* Take(std::size_t block_bytes);
  void Give(std::uint8_t* block, std::size_t block_bytes);

 private:
  std::mutex mutex_;
  std::array<std::vector<std::uint8_t*>, 4> free_;  // by size, each twice the one before
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

  std::uint8_t* data() const { return block_; }
  std::size_t size() const { return size_; }
  std::size_t capacity() const { return capacity_; }
  bool empty() const { return size_ == 0; }

  void Append(const std::uint8_t* bytes, std::size_t count);

 private:
  std::shared_ptr<ChunkPool> pool_;
  std::uint8_t* block_ = nullptr;
  std::size_t capacity_ = 0;
  std::size_t size_ = 0;
};

}  // namespace uprobe
