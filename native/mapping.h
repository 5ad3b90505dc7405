// An owned mmap(2) region.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <utility>

namespace uprobe {

class Mapping {
 public:
  Mapping() = default;
  // `mmap` with MAP_SHARED; an invalid mapping, with errno set, if it fails.
  Mapping(int fd, std::size_t offset, std::size_t bytes, int protection) : bytes_(bytes) {
    void* address = mmap(nullptr, bytes, protection, MAP_SHARED, fd, static_cast<off_t>(offset));
    address_ = address == MAP_FAILED ? nullptr : address;
  }
  Mapping(Mapping&& other) noexcept : address_(std::exchange(other.address_, nullptr)), bytes_(other.bytes_) {}
  Mapping& operator=(Mapping&& other) noexcept {
    std::swap(address_, other.address_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  ~Mapping() {
    if (address_ != nullptr) munmap(address_, bytes_);
  }

  bool valid() const { return address_ != nullptr; }
  void* address() const { return address_; }

 private:
  void* address_ = nullptr;
  std::size_t bytes_ = 0;
};

}  // namespace uprobe
