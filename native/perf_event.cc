// A uprobe is a perf event of the dynamic PMU "uprobe" (perf_uprobe, kernel/events/core.c):
//
//   type           from /sys/bus/event_source/devices/uprobe/type
//   config  bit 0  return probe
//           32-63  ref_ctr_offset, the counter that the kernel raises together with the breakpoint (Linux 4.20, commit a6ca88b241d5)
//   config1        path, a user pointer
//   config2        offset of the instruction in the file
//
// The breakpoint and the counter are in the target when the call returns; enabling has no part in it. The event is never inherited:
// the kernel would set it up again with the rights and in the memory of the target, at its fork, and fail that fork.
//
// We count hits in BPF. The event therefore takes no samples, and one event serves all threads and all CPUs: a perf sample is made only
// for the thread that the event was opened on, whereas a BPF program on it runs for every thread that meets the breakpoint.

#include "perf_event.h"

#include <linux/perf_event.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstring>

#include "apart.h"
#include "arguments.h"
#include "async.h"
#include "closer.h"
#include "errors.h"

namespace uprobe {

namespace {

Result<Fd> OpenedFd(long result) {
  if (result < 0) return LastFailure("perf_event_open");
  return Fd(static_cast<int>(result));
}

Napi::Value PerfEventOpenUprobe(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  const Napi::Object options = arguments.Object(0, "options");
  const std::uint32_t type = arguments.Uint32(arguments.Field(options, "type"), "type");
  const std::string path = arguments.String(arguments.Field(options, "path"), "path");
  const std::uint64_t file_offset = arguments.Uint64(arguments.Field(options, "fileOffset"), "fileOffset");
  const std::uint32_t ref_ctr_offset = arguments.Uint32(arguments.Field(options, "refCtrOffset"), "refCtrOffset");
  const bool retprobe = arguments.Boolean(arguments.Field(options, "retprobe"), "retprobe");
  const int tid = arguments.Int32(arguments.Field(options, "tid"), "tid", -1);
  if (arguments.Failed()) return Napi::Value();

  return RunForRegistration(info.Env(), "perf_event_open", [=]() -> Result<Fd> {
    perf_event_attr attributes{};
    attributes.size = sizeof attributes;
    attributes.type = type;
    attributes.config = (static_cast<std::uint64_t>(ref_ctr_offset) << 32) | (retprobe ? 1 : 0);
    attributes.config1 = reinterpret_cast<std::uintptr_t>(path.c_str());
    attributes.config2 = file_offset;
    // An event for every process must name a CPU. The breakpoint is in every process and the program runs on every CPU all the same.
    const int cpu = tid == -1 ? 0 : -1;
    return OpenedFd(RunApart(SYS_perf_event_open, {Argument(&attributes), tid, cpu, -1, PERF_FLAG_FD_CLOEXEC}));
  });
}

Napi::Value PerfEventSetBpf(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  const int perf_fd = arguments.FdNumber(arguments.At(0), "perfFd");
  const int program_fd = arguments.FdNumber(arguments.At(1), "progFd");
  if (arguments.Failed()) return Napi::Value();
  return RunForNothing(info.Env(), "PERF_EVENT_IOC_SET_BPF", [=]() -> Result<Nothing> {
    if (ioctl(perf_fd, PERF_EVENT_IOC_SET_BPF, program_fd) != 0) return LastFailure("ioctl(PERF_EVENT_IOC_SET_BPF)");
    return Nothing{};
  });
}

Napi::Value PerfEventEnable(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  const int perf_fd = arguments.FdNumber(arguments.At(0), "perfFd");
  const bool enable = arguments.Boolean(arguments.At(1), "enable");
  if (arguments.Failed()) return Napi::Value();
  if (ioctl(perf_fd, enable ? PERF_EVENT_IOC_ENABLE : PERF_EVENT_IOC_DISABLE, 0) != 0) {
    return ThrowFailure(info.Env(), LastFailure(enable ? "ioctl(PERF_EVENT_IOC_ENABLE)" : "ioctl(PERF_EVENT_IOC_DISABLE)"));
  }
  return info.Env().Undefined();
}

Napi::Value PerfEventReadCount(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  const int perf_fd = arguments.FdNumber(arguments.At(0), "perfFd");
  if (arguments.Failed()) return Napi::Value();
  std::uint64_t count = 0;
  const ssize_t bytes = read(perf_fd, &count, sizeof count);
  if (bytes < 0) return ThrowFailure(info.Env(), LastFailure("read"));
  // A short read is the end of file that an event in error state answers with (__perf_read, kernel/events/core.c).
  if (bytes != sizeof count) return ThrowFailure(info.Env(), Failure{"read", EIO});
  return Napi::BigInt::New(info.Env(), count);
}

Napi::Value TaskWatchOpen(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  const int tid = arguments.Int32(arguments.At(0), "tid", 1);
  if (arguments.Failed()) return Napi::Value();
  perf_event_attr attributes{};
  attributes.size = sizeof attributes;
  attributes.type = PERF_TYPE_SOFTWARE;
  attributes.config = PERF_COUNT_SW_DUMMY;
  attributes.comm = 1;
  attributes.comm_exec = 1;  // PERF_RECORD_MISC_COMM_EXEC marks the renaming that exec does
  attributes.exclude_kernel = 1;
  attributes.exclude_hv = 1;
  // Wake at the first byte: wakeup_events counts samples only, and there are none.
  attributes.watermark = 1;
  attributes.wakeup_watermark = 1;
  return RunForFd(info.Env(), "perf_event_open", [attributes, tid]() mutable -> Result<Fd> {
    return OpenedFd(syscall(SYS_perf_event_open, &attributes, tid, -1, -1, PERF_FLAG_FD_CLOEXEC));
  });
}

Napi::Value SidebandOpen(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  const int cpu = arguments.Int32(arguments.At(0), "cpu", 0);
  if (arguments.Failed()) return Napi::Value();
  perf_event_attr attributes{};
  attributes.size = sizeof attributes;
  attributes.type = PERF_TYPE_SOFTWARE;
  attributes.config = PERF_COUNT_SW_DUMMY;
  attributes.mmap = 1;   // executable mappings only: mmap_data is for the others
  attributes.mmap2 = 1;  // with the inode
  attributes.task = 1;
  attributes.exclude_kernel = 1;
  attributes.exclude_hv = 1;
  attributes.watermark = 1;
  attributes.wakeup_watermark = 1;
  Result<Fd> opened = OpenedFd(syscall(SYS_perf_event_open, &attributes, -1, cpu, -1, PERF_FLAG_FD_CLOEXEC));
  if (const Failure* failure = opened.failure()) return ThrowFailure(info.Env(), *failure);
  return HandOver(info.Env(), std::move(opened.value()));
}

}  // namespace

void InitPerfEvent(Napi::Env env, Napi::Object exports) {
  exports.Set("perfEventOpenUprobe", Napi::Function::New<PerfEventOpenUprobe>(env, "perfEventOpenUprobe"));
  exports.Set("perfEventSetBpf", Napi::Function::New<PerfEventSetBpf>(env, "perfEventSetBpf"));
  exports.Set("perfEventEnable", Napi::Function::New<PerfEventEnable>(env, "perfEventEnable"));
  exports.Set("perfEventReadCount", Napi::Function::New<PerfEventReadCount>(env, "perfEventReadCount"));
  exports.Set("taskWatchOpen", Napi::Function::New<TaskWatchOpen>(env, "taskWatchOpen"));
  exports.Set("sidebandOpen", Napi::Function::New<SidebandOpen>(env, "sidebandOpen"));
}

}  // namespace uprobe
