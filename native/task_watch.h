// What one thread of a target does that ends our part in it: exec, or its own end.
//
// The kernel tells it on the dummy event of taskWatchOpen (perf_event.cc): exec writes a PERF_RECORD_COMM with
// PERF_RECORD_MISC_COMM_EXEC into the event's small ring, and the fd hangs up when the thread is gone. A pidfd is no substitute: it
// is silent at exec, and until the last thread of the process has ended.
#pragma once

#include <cstdint>

#include "fd.h"
#include "mapping.h"
#include "result.h"

namespace uprobe {

class TaskWatch {
 public:
  // Maps the event's ring. `fd` stays the caller's.
  static Result<TaskWatch> Map(int fd);

  // Reads all records; whether one of them was an exec.
  bool TakeExec();

 private:
  Mapping mapping_;
};

}  // namespace uprobe
