// What a system call left: a value, or which call failed and with what errno. Exceptions are off in this addon, and most calls
// run on threads that could not throw into JavaScript anyway; errors.h turns a Failure into an Error on the JavaScript thread.
#pragma once

#include <cerrno>
#include <string>
#include <utility>
#include <variant>

namespace uprobe {

struct Failure {
  const char* syscall;  // static text, as in "perf_event_open"
  int number;           // positive errno
  std::string verifier_log = {};  // what the BPF verifier said, if it was asked
};

// The failure of the call that has just set errno.
inline Failure LastFailure(const char* syscall) { return Failure{syscall, errno}; }

struct Nothing {};

template <typename Value>
class Result {
 public:
  Result(Value value) : outcome_(std::move(value)) {}          // NOLINT: a value is a result
  Result(Failure failure) : outcome_(std::move(failure)) {}    // NOLINT: so is a failure

  // The failure, or null if there is a value.
  Failure* failure() { return std::get_if<Failure>(&outcome_); }
  // The value; only where failure() is null.
  Value& value() { return *std::get_if<Value>(&outcome_); }

 private:
  std::variant<Value, Failure> outcome_;
};

}  // namespace uprobe
