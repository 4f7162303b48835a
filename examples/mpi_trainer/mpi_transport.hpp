// A transport of libdualpipe on MPI, one rank's end of it. README.md says how tags and memory are dealt with.
#pragma once

#include "peers.hpp"

#include <climits>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

namespace trainer {

class MpiTransport : public dualpipe::Transport {
public:
  // For an executor of this schedule with so many tensors at each boundary. Rank r is process r. `peers` outlives it.
  MpiTransport(Peers &peers, const dualpipe::Schedule &schedule, uint32_t num_tensors)
      : peers_(peers), info_(schedule.describe()), num_tensors_(num_tensors) {
    check_tags();
  }

  ~MpiTransport() override {
    // What is still under way MPI may touch until the process ends, and so it is not freed.
    for (Slot &slot : slots_) {
      if (slot.is_used) static_cast<void>(slot.bytes.release());
    }
  }

  dualpipe::TransportCode send(const dualpipe::Transfer &transfer, uint64_t &request) override {
    Slot &slot = take(transfer, request);
    if (transfer.num_bytes > 0) std::memcpy(slot.bytes->data(), transfer.data, transfer.num_bytes);
    check_mpi(MPI_Isend(slot.bytes->data(), static_cast<int>(transfer.num_bytes), MPI_BYTE,
                        static_cast<int>(transfer.peer), tag_of(transfer), comm_.get(), &slot.request),
              "MPI_Isend");
    slot.num_bytes = static_cast<int>(transfer.num_bytes);
    slot.is_used = true;
    return dualpipe::TransportCode::ok;
  }

  dualpipe::TransportCode receive(const dualpipe::Transfer &transfer, uint64_t &request) override {
    Slot &slot = take(transfer, request);
    check_mpi(MPI_Irecv(slot.bytes->data(), static_cast<int>(transfer.num_bytes), MPI_BYTE,
                        static_cast<int>(transfer.peer), tag_of(transfer), comm_.get(), &slot.request),
              "MPI_Irecv");
    slot.into = transfer.data;
    slot.is_used = true;
    return dualpipe::TransportCode::ok;
  }

  dualpipe::TransportCode test(uint64_t request, bool &done, uint64_t &num_bytes) override {
    Slot &slot = slots_.at(request);
    MPI_Status status;
    int is_done = 0;
    check_mpi(MPI_Test(&slot.request, &is_done, &status), "MPI_Test");
    done = is_done != 0;
    if (!done) return dualpipe::TransportCode::ok;
    if (slot.into != nullptr) {
      MPI_Get_count(&status, MPI_BYTE, &slot.num_bytes); // nothing, for an absent gradient
      std::memcpy(slot.into, slot.bytes->data(), static_cast<size_t>(slot.num_bytes));
    }
    num_bytes = static_cast<uint64_t>(slot.num_bytes);
    slot.is_used = false;
    return dualpipe::TransportCode::ok;
  }

  void withdraw() override {
    // Nobody asks for what is under way any more, so nothing is copied to the executor.
    for (Slot &slot : slots_) slot.into = nullptr;
  }

  std::optional<dualpipe::PeerAbort> poll_abort() override { return peers_.poll(); }
  void abort(uint32_t rank, const std::string &text) override { peers_.abort(rank, text); }

private:
  // A transfer under way; its number is its index.
  struct Slot {
    MPI_Request request = MPI_REQUEST_NULL;
    std::unique_ptr<std::vector<char>> bytes = std::make_unique<std::vector<char>>();
    void *into = nullptr; // of a receive, where the bytes are to go
    int num_bytes = 0;
    bool is_used = false;
  };

  // Of one tensor of a message: no two of a step have the same.
  uint64_t tag(const dualpipe::Message &message, uint32_t tensor) const {
    uint64_t tag = message.kind() == dualpipe::MessageKind::gradient ? 1 : 0;
    tag = tag * info_.num_directions + message.pass.direction;
    tag = tag * info_.num_stages + message.pass.stage;
    tag = tag * info_.num_microbatches + message.pass.microbatch;
    return tag * num_tensors_ + tensor;
  }

  int tag_of(const dualpipe::Transfer &transfer) const {
    return static_cast<int>(tag(transfer.message, transfer.tensor)); // fits: see check_tags
  }

  void check_tags() const {
    dualpipe_message last{};
    last.kind = DUALPIPE_MESSAGE_GRADIENT;
    last.pass.direction = info_.num_directions - 1;
    last.pass.stage = info_.num_stages - 1;
    last.pass.microbatch = info_.num_microbatches - 1;
    int *tag_max = nullptr, has_value = 0;
    check_mpi(MPI_Comm_get_attr(comm_.get(), MPI_TAG_UB, &tag_max, &has_value), "MPI_Comm_get_attr");
    const uint64_t needed = tag(last, num_tensors_ - 1);
    if (has_value && needed <= static_cast<uint64_t>(*tag_max)) return;
    throw MpiError("the messages of a step need tags up to " + std::to_string(needed) + ", this MPI has them up to " +
                   std::to_string(has_value ? *tag_max : 0) + ": use fewer micro-batches, stages or tensors");
  }

  // One that is free, with room.
  Slot &take(const dualpipe::Transfer &transfer, uint64_t &request) {
    if (transfer.num_bytes > INT_MAX) {
      throw MpiError("a tensor has " + std::to_string(transfer.num_bytes) + " bytes; MPI sends at most " +
                     std::to_string(INT_MAX) + " at once: split it");
    }
    request = 0;
    while (request < slots_.size() && slots_[request].is_used) request++;
    if (request == slots_.size()) slots_.emplace_back();
    Slot &slot = slots_[request];
    if (slot.bytes->size() < transfer.num_bytes) slot.bytes->resize(transfer.num_bytes);
    slot.into = nullptr;
    return slot;
  }

  Communicator comm_{MPI_COMM_WORLD};
  Peers &peers_;
  dualpipe::ScheduleInfo info_;
  uint32_t num_tensors_;
  std::vector<Slot> slots_;
};

} // namespace trainer
