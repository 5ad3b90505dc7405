#include "counter_store.h"

#include <unistd.h>

#include <cerrno>

namespace uprobe {

namespace {

// The high byte is the second one.
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "x86-64 and arm64 are little-endian");

Failure Refusal(int number) { return Failure{"counter_store", number}; }

}  // namespace

std::optional<Failure> CounterStore::RefusalOfPlace() {
  // An even address also keeps the two bytes on one page.
  if (address_ % sizeof(std::uint16_t) != 0) return Refusal(EINVAL);
  Result<std::optional<Vma>> found = vmas_.Find(address_);
  if (const Failure* const failure = found.failure()) return failure->number == ESRCH ? Refusal(ESRCH) : *failure;
  if (!found.value()) return Refusal(EFAULT);
  const Vma& vma = *found.value();
  if (vma.device_major != expected_.device_major || vma.device_minor != expected_.device_minor || vma.inode != expected_.inode) return Refusal(ESTALE);
  const bool of_file = expected_.inode != 0 || expected_.device_major != 0 || expected_.device_minor != 0;
  if (of_file && vma.file_offset + (address_ - vma.start) != expected_.file_offset) return Refusal(ESTALE);
  if (!vma.writable || vma.shared) return Refusal(EACCES);
  return std::nullopt;
}

Result<std::uint16_t> CounterStore::Read() {
  if (const std::optional<Failure> refusal = RefusalOfPlace()) return *refusal;
  return Load();
}

Result<std::uint16_t> CounterStore::ChangeMsb(std::uint16_t wanted) {
  if (const std::optional<Failure> refusal = RefusalOfPlace()) return *refusal;
  Result<std::uint16_t> before = Load();
  if (before.failure() != nullptr) return before;
  if ((before.value() & 0x7f00) != 0) return Refusal(ERANGE);
  // A process that has no claim is not written: a store would also give it a page of its own.
  if ((before.value() & kMsb) == wanted) return before;
  if (const std::optional<Failure> failure = StoreMsb(wanted)) return *failure;
  Result<std::uint16_t> after = Load();
  if (after.failure() == nullptr && (after.value() & kMsb) != wanted) return Refusal(EBUSY);
  return after;
}

Result<Nothing> CounterStore::Replace(std::uint16_t expected, std::uint16_t value) {
  if (const std::optional<Failure> refusal = RefusalOfPlace()) return *refusal;
  Result<std::uint16_t> before = Load();
  if (const Failure* const failure = before.failure()) return *failure;
  if (before.value() != expected) return Refusal(EBUSY);
  if (const std::optional<Failure> failure = StoreAll(expected, value)) return *failure;
  Result<std::uint16_t> after = Load();
  if (const Failure* const failure = after.failure()) return *failure;
  if (after.value() != value) return Refusal(EBUSY);
  return Nothing{};
}

Result<std::uint16_t> CounterStore::Load() const {
  // The program's threads and the kernel write it meanwhile.
  if (space_ == Space::kOwn) return __atomic_load_n(OwnCounter(), __ATOMIC_SEQ_CST);
  std::uint16_t value = 0;
  const ssize_t count = pread(mem_fd_, &value, sizeof value, static_cast<off_t>(address_));
  if (count != sizeof value) return FailedAccess("pread", count);
  return value;
}

std::optional<Failure> CounterStore::StoreMsb(std::uint16_t wanted) const {
  if (space_ == Space::kOwn) {
    if (wanted != 0) {
      __atomic_fetch_or(OwnCounter(), kMsb, __ATOMIC_SEQ_CST);
    } else {
      __atomic_fetch_and(OwnCounter(), static_cast<std::uint16_t>(~kMsb), __ATOMIC_SEQ_CST);
    }
    return std::nullopt;
  }
  const auto high_byte = static_cast<std::uint8_t>(wanted >> 8);
  return WriteMemory(&high_byte, sizeof high_byte, address_ + 1);
}

std::optional<Failure> CounterStore::StoreAll(std::uint16_t expected, std::uint16_t value) const {
  if (space_ == Space::kOwn) {
    const bool stored = __atomic_compare_exchange_n(OwnCounter(), &expected, value, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    return stored ? std::nullopt : std::optional<Failure>(Refusal(EBUSY));
  }
  return WriteMemory(&value, sizeof value, address_);
}

std::optional<Failure> CounterStore::WriteMemory(const void* bytes, std::size_t count, std::uint64_t address) const {
  const ssize_t written = pwrite(mem_fd_, bytes, count, static_cast<off_t>(address));
  if (written != static_cast<ssize_t>(count)) return FailedAccess("pwrite", written);
  return std::nullopt;
}

// Why /proc/PID/mem did not take or give all.
Failure CounterStore::FailedAccess(const char* syscall, ssize_t count) const {
  // `mmget_not_zero` failed (`mem_rw`, fs/proc/base.c): the last user of the address space has left it.
  if (count == 0) return Refusal(ESRCH);
  // The page could not be had: it was unmapped a moment ago, or lies beyond the end of a file that was cut short.
  if (count > 0 || errno == EIO) return Refusal(EFAULT);
  return LastFailure(syscall);
}

}  // namespace uprobe
