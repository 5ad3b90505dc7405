#include "chunk.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace uprobe {

namespace {

// How much a pool keeps. V8's collector finds the blocks that are not needed any more when the hits have filled its new space, which by then were in so many of them.
constexpr std::size_t kMaxFreeBytes = 8 << 20;

// Which list a block is in.
std::size_t SizeClass(std::size_t block_bytes) {
  std::size_t size_class = 0;
  while ((ChunkPool::kSmallestBytes << size_class) < block_bytes) size_class++;
  return size_class;
}

}  // namespace

ChunkPool::~ChunkPool() {
  for (const std::vector<std::uint8_t*>& blocks : free_) {
    for (std::uint8_t* const block : blocks) delete[] block;
  }
}

std::size_t ChunkPool::BlockBytes(std::size_t bytes) {
  return bytes < kSmallestBytes || bytes > kChunkBytes ? bytes : kSmallestBytes << SizeClass(bytes);
}

std::uint8_t* ChunkPool::Take(std::size_t block_bytes) {
  if (block_bytes >= kSmallestBytes && block_bytes <= kChunkBytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::vector<std::uint8_t*>& blocks = free_[SizeClass(block_bytes)];
    if (!blocks.empty()) {
      std::uint8_t* const block = blocks.back();
      blocks.pop_back();
      free_bytes_ -= block_bytes;
      return block;
    }
  }
  return new std::uint8_t[block_bytes];
}

void ChunkPool::Give(std::uint8_t* block, std::size_t block_bytes) {
  if (block_bytes >= kSmallestBytes && block_bytes <= kChunkBytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (free_bytes_ + block_bytes <= kMaxFreeBytes) {
      free_[SizeClass(block_bytes)].push_back(block);
      free_bytes_ += block_bytes;
      return;
    }
  }
  delete[] block;
}

Chunk::Chunk(std::shared_ptr<ChunkPool> pool, std::size_t bytes)
    : pool_(std::move(pool)), capacity_(ChunkPool::BlockBytes(bytes)) {
  if (capacity_ > 0) block_ = pool_->Take(capacity_);
}

Chunk::~Chunk() {
  if (block_ != nullptr) pool_->Give(block_, capacity_);
}

Chunk::Chunk(Chunk&& other) noexcept
    : pool_(std::move(other.pool_)),
      block_(std::exchange(other.block_, nullptr)),
      capacity_(std::exchange(other.capacity_, 0)),
      size_(std::exchange(other.size_, 0)) {}

Chunk& Chunk::operator=(Chunk&& other) noexcept {
  std::swap(pool_, other.pool_);
  std::swap(block_, other.block_);
  std::swap(capacity_, other.capacity_);
  std::swap(size_, other.size_);
  return *this;
}

void Chunk::Append(const std::uint8_t* bytes, std::size_t count) {
  if (count == 0) return;
  if (size_ + count > capacity_) {
    Chunk larger(pool_, std::max(size_ + count, std::min(2 * capacity_, kChunkBytes)));
    larger.Append(block_, size_);
    *this = std::move(larger);
  }
  std::memcpy(block_ + size_, bytes, count);
  size_ += count;
}

}  // namespace uprobe
