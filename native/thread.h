// A POSIX thread that is joined when its owner goes. std::thread would do, but it reports "no more threads" by throwing, and
// exceptions are off here.
#pragma once

#include <pthread.h>

#include <functional>
#include <memory>

#include "result.h"

namespace uprobe {

class Thread {
 public:
  Thread() = default;
  Thread(Thread&& other) noexcept : handle_(other.handle_), tid_(other.tid_), joinable_(std::exchange(other.joinable_, false)) {}
  Thread& operator=(Thread&& other) noexcept;
  Thread(const Thread&) = delete;
  Thread& operator=(const Thread&) = delete;
  ~Thread() { Join(); }

  // Runs `body` on a new thread called `name` (at most 15 bytes), with every signal blocked: the signals of a process belong to the
  // program that embeds us. Returns once the thread runs.
  static Result<Thread> Start(const char* name, std::function<void()> body);

  // Waits for the end of `body`. Idempotent.
  void Join();
  // Lets the thread run on by itself.
  void Detach();
  // The kernel's number of the thread, in our pid namespace.
  int tid() const { return tid_; }

 private:
  pthread_t handle_{};
  int tid_ = 0;
  bool joinable_ = false;
};

}  // namespace uprobe
