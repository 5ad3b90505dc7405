#include "vma.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>

namespace uprobe {

namespace {

using Found = Result<std::optional<Vma>>;

// struct procmap_query, include/uapi/linux/fs.h of Linux 6.11, which is younger than the headers of most build machines. Newer kernels may append to it:
// they read as many bytes as `size` says (`do_procmap_query`, fs/proc/task_mmu.c).
struct ProcmapQuery {
  std::uint64_t size;
  std::uint64_t query_flags;
  std::uint64_t query_addr;
  std::uint64_t vma_start;
  std::uint64_t vma_end;
  std::uint64_t vma_flags;
  std::uint64_t vma_page_size;
  std::uint64_t vma_offset;
  std::uint64_t inode;
  std::uint32_t dev_major;
  std::uint32_t dev_minor;
  std::uint32_t vma_name_size;
  std::uint32_t build_id_size;
  std::uint64_t vma_name_addr;
  std::uint64_t build_id_addr;
};
static_assert(sizeof(ProcmapQuery) == 104, "the size is part of the ioctl's number");

constexpr unsigned long kProcmapQuery = _IOWR('f', 17, ProcmapQuery);
constexpr std::uint64_t kVmaWritable = 0x02;
constexpr std::uint64_t kVmaShared = 0x08;

Found QueryKernel(int maps_fd, std::uint64_t address) {
  // No flags: only a mapping that covers the address will do. No name is asked for, so that the kernel need not print one.
  ProcmapQuery query{};
  query.size = sizeof query;
  query.query_addr = address;
  if (ioctl(maps_fd, kProcmapQuery, &query) != 0) {
    if (errno == ENOENT) return std::optional<Vma>();
    return LastFailure("ioctl");
  }
  return std::optional<Vma>(Vma{
      query.vma_start,
      query.vma_end,
      (query.vma_flags & kVmaWritable) != 0,
      (query.vma_flags & kVmaShared) != 0,
      query.vma_offset,
      query.dev_major,
      query.dev_minor,
      query.inode,
  });
}

// Reads the fields at the beginning of a line of maps, one after another. The first that is not what it should be ends it.
class Fields {
 public:
  Fields(const char* text, std::size_t length) : at_(text), end_(text + length) {}

  bool ok() const { return ok_; }

  // A character that must come now.
  void Expect(char character) {
    if (Next() != character) ok_ = false;
  }

  // A flag such as 'w' or '-'.
  char Flag() { return Next(); }

  std::uint64_t Number(unsigned base) {
    std::uint64_t number = 0;
    const char* const begin = at_;
    for (unsigned digit = 0; at_ < end_ && (digit = DigitOf(*at_)) < base; at_++) number = number * base + digit;
    if (at_ == begin) ok_ = false;
    return number;
  }

 private:
  static unsigned DigitOf(char character) {
    if (character >= '0' && character <= '9') return static_cast<unsigned>(character - '0');
    if (character >= 'a' && character <= 'f') return static_cast<unsigned>(character - 'a') + 10;
    return 16;
  }

  char Next() {
    if (at_ < end_) return *at_++;
    ok_ = false;
    return '\0';
  }

  const char* at_;
  const char* const end_;
  bool ok_ = true;
};

// "55d0c8a00000-55d0c8a21000 rw-p 0000c000 08:01 1835029    /usr/bin/node" (`show_map_vma`, fs/proc/task_mmu.c)
std::optional<Vma> ParseLine(const char* line, std::size_t length) {
  Fields fields(line, length);
  Vma vma{};
  vma.start = fields.Number(16);
  fields.Expect('-');
  vma.end = fields.Number(16);
  fields.Expect(' ');
  fields.Flag();  // r
  vma.writable = fields.Flag() == 'w';
  fields.Flag();  // x
  vma.shared = fields.Flag() == 's';
  fields.Expect(' ');
  vma.file_offset = fields.Number(16);
  fields.Expect(' ');
  vma.device_major = static_cast<std::uint32_t>(fields.Number(16));
  fields.Expect(':');
  vma.device_minor = static_cast<std::uint32_t>(fields.Number(16));
  fields.Expect(' ');
  vma.inode = fields.Number(10);
  if (!fields.ok()) return std::nullopt;
  return vma;
}

// Two addresses, an offset and an inode of 64 bits and a device of 32 take 88 characters.
constexpr std::size_t kLineHead = 96;
// The kernel gives at most a page a read, or one line that is longer.
constexpr std::size_t kChunk = 4096;

Found SearchText(int maps_fd, std::uint64_t address) {
  char chunk[kChunk];
  char head[kLineHead];
  std::size_t head_length = 0;
  off_t offset = 0;
  for (;;) {
    const ssize_t count = pread(maps_fd, chunk, sizeof chunk, offset);
    if (count < 0) return LastFailure("pread");
    if (count == 0) break;
    offset += count;
    for (ssize_t at = 0; at < count; at++) {
      if (chunk[at] != '\n') {
        if (head_length < sizeof head) head[head_length++] = chunk[at];
        continue;
      }
      const std::optional<Vma> vma = ParseLine(head, head_length);
      head_length = 0;
      if (!vma) return Failure{"pread", EBADMSG};
      if (address < vma->start) return std::optional<Vma>();
      if (address < vma->end) return vma;
    }
  }
  // Of an address space that nobody uses any more, `m_start` gives nothing; one that is in use has at least the stack it was started with.
  if (offset == 0) return Failure{"pread", ESRCH};
  return std::optional<Vma>();
}

}  // namespace

Result<std::optional<Vma>> VmaFinder::Find(std::uint64_t address) {
  if (way_ == Way::kIoctl) {
    Found found = QueryKernel(maps_fd_, address);
    const Failure* const failure = found.failure();
    if (failure == nullptr || failure->number != ENOTTY) return found;
    way_ = Way::kText;
  }
  return SearchText(maps_fd_, address);
}

}  // namespace uprobe
