#include "chunk.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace uprobe {

namespace {

// How much a pool keeps. V8's collector finds the blocks that are not needed any more when the hits have filled its new space, which by then were in so many of them.
constexpr std::size_t kMaxFreeBytes = 8 << 20;

bool IsPooled(std::size_t bytes) { return bytes >= ChunkPool::kSmallestBytes && bytes <= kChunkBytes; }

}  // namespace

ChunkPool::~ChunkPool() {
  for (const std::vector<std::uint8_t*>& blocks : free_) {
    for (std::uint8_t* const data : blocks) delete[] data;
  }
}

ChunkPool::Block ChunkPool::Take(std::size_t bytes) {
  if (!IsPooled(bytes)) return {new std::uint8_t[bytes], bytes};
  const std::size_t steps = (bytes + kStepBytes - 1) / kStepBytes;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    // One of the next size wastes little.
    for (std::size_t size = steps; size <= steps + 1 && size < free_.size(); size++) {
      if (free_[size].empty()) continue;
      std::uint8_t* const data = free_[size].back();
      free_[size].pop_back();
      free_bytes_ -= size * kStepBytes;
      return {data, size * kStepBytes};
    }
  }
  return {new std::uint8_t[steps * kStepBytes], steps * kStepBytes};
}

void ChunkPool::Give(Block block) {
  if (IsPooled(block.bytes)) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (free_bytes_ + block.bytes <= kMaxFreeBytes) {
      free_[block.bytes / kStepBytes].push_back(block.data);
      free_bytes_ += block.bytes;
      return;
    }
  }
  delete[] block.data;
}

Chunk::Chunk(std::shared_ptr<ChunkPool> pool, std::size_t bytes) : pool_(std::move(pool)) {
  if (bytes > 0) block_ = pool_->Take(bytes);
}

Chunk::~Chunk() {
  if (block_.data != nullptr) pool_->Give(block_);
}

Chunk::Chunk(Chunk&& other) noexcept
    : pool_(std::move(other.pool_)), block_(std::exchange(other.block_, {})), size_(std::exchange(other.size_, 0)), kind_(std::exchange(other.kind_, {})) {}

Chunk& Chunk::operator=(Chunk&& other) noexcept {
  std::swap(pool_, other.pool_);
  std::swap(block_, other.block_);
  std::swap(size_, other.size_);
  std::swap(kind_, other.kind_);
  return *this;
}

void Chunk::Append(const std::uint8_t* bytes, std::size_t count, const RecordKind& kind) {
  if (count == 0) return;
  if (size_ + count > block_.bytes) {
    Chunk larger(pool_, std::max(size_ + count, std::min(2 * block_.bytes, kChunkBytes)));
    larger.Append(*this);
    *this = std::move(larger);
  }
  std::memcpy(block_.data + size_, bytes, count);
  size_ += count;
  kind_.Add(kind);
}

}  // namespace uprobe
