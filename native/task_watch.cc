#include "task_watch.h"

#include <linux/perf_event.h>
#include <unistd.h>

namespace uprobe {

Result<TaskWatch> TaskWatch::Map(int fd) {
  const auto page_bytes = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  TaskWatch watch;
  // One page for struct perf_event_mmap_page, one for records. Writable, or the kernel would overwrite records that we have not read.
  watch.mapping_ = Mapping(fd, 0, 2 * page_bytes, PROT_READ | PROT_WRITE);
  if (!watch.mapping_.valid()) return LastFailure("mmap");
  return watch;
}

bool TaskWatch::TakeExec() {
  auto* const control = static_cast<perf_event_mmap_page*>(mapping_.address());
  const auto* const data = static_cast<const std::uint8_t*>(mapping_.address()) + control->data_offset;
  bool exec = false;
  // Pairs with the smp_wmb() before the store of data_head in perf_output_put_handle, kernel/events/ring_buffer.c.
  const std::uint64_t head = __atomic_load_n(&control->data_head, __ATOMIC_ACQUIRE);
  std::uint64_t tail = control->data_tail;
  while (tail != head) {
    // Records start at multiples of 8 in a ring of whole pages, so that a header, which has 8 bytes, never wraps.
    const auto* const header = reinterpret_cast<const perf_event_header*>(data + tail % control->data_size);
    if (header->type == PERF_RECORD_COMM && (header->misc & PERF_RECORD_MISC_COMM_EXEC) != 0) exec = true;
    tail += header->size;
  }
  // Pairs with the control dependency on data_tail in __perf_output_begin.
  __atomic_store_n(&control->data_tail, tail, __ATOMIC_RELEASE);
  return exec;
}

}  // namespace uprobe
