// An owned file descriptor. Every fd of the addon lives in one from the call that made it until JavaScript takes it over,
// so that no early return and no torn-down environment leaks a probe into a target.
#pragma once

#include <unistd.h>

#include <utility>

namespace uprobe {

class Fd {
 public:
  Fd() = default;
  explicit Fd(int fd) : fd_(fd) {}
  Fd(Fd&& other) noexcept : fd_(other.Release()) {}
  Fd& operator=(Fd&& other) noexcept {
    if (this != &other) Reset(other.Release());
    return *this;
  }
  Fd(const Fd&) = delete;
  Fd& operator=(const Fd&) = delete;
  ~Fd() { Reset(-1); }

  int get() const { return fd_; }
  bool valid() const { return fd_ >= 0; }
  int Release() { return std::exchange(fd_, -1); }

 private:
  void Reset(int fd) {
    // close(2) frees the descriptor whatever it answers, EINTR included: there is nothing to retry.
    if (fd_ >= 0) close(fd_);
    fd_ = fd;
  }

  int fd_ = -1;
};

}  // namespace uprobe
