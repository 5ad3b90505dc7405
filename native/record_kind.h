// What the records of a chunk have in common: their length, and the probe that each of them names.
//
// While all are alike it is known where each begins and whose it is, without a look at any: that costs the reading thread next to nothing, which has them at hand, and JavaScript a way through all
// of them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace uprobe {

class RecordKind {
 public:
  // The head of a record in the ring and in a chunk.
  static constexpr std::size_t kHeadBytes = 8;  // BPF_RINGBUF_HDR_SZ

  // Of no records.
  RecordKind() = default;
  // Of one record, whose payload begins at `payload`.
  RecordKind(const std::uint8_t* payload, std::uint32_t payload_bytes) : payload_bytes_(payload_bytes) {
    // A shorter one names no probe.
    if (payload_bytes < kProbeIdAt + sizeof probe_id_) {
      state_ = State::kMixed;
    } else {
      state_ = State::kAlike;
      std::memcpy(&probe_id_, payload + kProbeIdAt, sizeof probe_id_);
    }
  }

  // Of these and of others behind them.
  void Add(const RecordKind& others) {
    if (state_ == State::kEmpty) {
      *this = others;
    } else if (others.state_ != State::kEmpty && (others.state_ != state_ || others.payload_bytes_ != payload_bytes_ || others.probe_id_ != probe_id_)) {
      state_ = State::kMixed;
    }
  }

  // Bytes from one record to the next; 0 if they are not all alike, or if there are none.
  std::size_t distance() const { return state_ == State::kAlike ? Bytes(payload_bytes_) : 0; }

  // Bytes of a record with its head, and padded to 8.
  static constexpr std::size_t Bytes(std::size_t payload_bytes) { return (kHeadBytes + payload_bytes + 7) & ~std::size_t{7}; }

 private:
  enum class State : std::uint8_t { kEmpty, kAlike, kMixed };

  // Where the payload names its probe (FIELD.probeId, lib/capture/record.ts).
  static constexpr std::size_t kProbeIdAt = 16;

  std::uint32_t payload_bytes_ = 0;
  std::uint32_t probe_id_ = 0;
  State state_ = State::kEmpty;
};

}  // namespace uprobe
