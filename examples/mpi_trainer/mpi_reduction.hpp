// Sums between processes: of the gradients of a stage's two copies, and of what all ranks have.
#pragma once

#include "peers.hpp"

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "reduce.hpp"

namespace trainer {

// Memory that is being sent or received is the rank's and this object's own. After a failure both must stay until the
// process ends.
class MpiReduction : public Reduction {
public:
  // `peers` outlives it.
  explicit MpiReduction(Peers &peers) : peers_(peers) {}

  void begin(uint32_t direction, uint32_t stage, uint32_t peer, const std::vector<float> &grads) override {
    Exchange &exchange = exchanges_[{direction, stage}];
    const int count = static_cast<int>(grads.size()), rank = static_cast<int>(peer), tag = static_cast<int>(stage);
    exchange.twin.resize(grads.size());
    exchange.requests.assign(2, MPI_REQUEST_NULL);
    check_mpi(MPI_Irecv(exchange.twin.data(), count, MPI_FLOAT, rank, tag, comm_.get(), &exchange.requests[0]),
              "MPI_Irecv");
    check_mpi(MPI_Isend(grads.data(), count, MPI_FLOAT, rank, tag, comm_.get(), &exchange.requests[1]), "MPI_Isend");
  }

  void finish(uint32_t direction, uint32_t stage, uint32_t peer, std::vector<float> &grads) override {
    const auto found = exchanges_.find({direction, stage});
    peers_.wait(found->second.requests, what("the gradients of stage " + std::to_string(stage) + ", from rank " +
                                             std::to_string(peer)));
    sum_copies(direction, grads, found->second.twin);
    exchanges_.erase(found);
  }

  // The sums of the values of all ranks, or with MPI_MAX or MPI_MIN what that says. `name` is for the error.
  template <class Number>
  std::vector<Number> over_all(const std::vector<Number> &values, const std::string &name, MPI_Op op = MPI_SUM) {
    std::vector<MPI_Request> requests = {MPI_REQUEST_NULL};
    shared_.assign(values.begin(), values.end());
    check_mpi(MPI_Iallreduce(MPI_IN_PLACE, shared_.data(), static_cast<int>(shared_.size()), MPI_DOUBLE, op,
                             comm_.get(), requests.data()),
              "MPI_Iallreduce");
    peers_.wait(requests, what(name + " of all ranks"));
    std::vector<Number> sums;
    for (const double value : shared_) sums.push_back(static_cast<Number>(value));
    return sums;
  }

  // The values of rank `from`, on all ranks; there are as many on each.
  std::vector<float> from_one(const std::vector<float> &values, uint32_t from, const std::string &name) {
    const bool is_here = from == peers_.rank();
    return over_all(is_here ? values : std::vector<float>(values.size()), name);
  }

private:
  struct Exchange {
    std::vector<float> twin; // the other copy's gradients
    std::vector<MPI_Request> requests;
  };

  std::string what(const std::string &name) const { return "rank " + std::to_string(peers_.rank()) + ": " + name; }

  Communicator comm_{MPI_COMM_WORLD};
  Peers &peers_;
  std::map<std::pair<uint32_t, uint32_t>, Exchange> exchanges_; // by direction and stage
  std::vector<double> shared_;                                  // with all ranks
};

} // namespace trainer
