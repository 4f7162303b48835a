// Tests of the model alone: its gradients against finite differences, and that Check sees a wrong one.
#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

#include "check.hpp"
#include "data.hpp"
#include "sequential.hpp"

namespace {

using namespace trainer;

int num_failures = 0;

void expect(bool is_so, const std::string &what) {
  if (is_so) return;
  std::printf("FAILED: %s\n", what.c_str());
  num_failures++;
}

// Moves every matrix along its gradient: the loss must rise by the gradient's length per length. With two experts a
// token goes to both, whatever the router says, so that the loss has no jumps.
void gradients_are_slopes(const Data &data, const Shape &shape) {
  constexpr uint32_t num_microbatches = 3;
  constexpr float length = 1e-2f;
  Sequential model(shape, data, 1);
  model.step(0, num_microbatches, 1);
  std::vector<std::vector<float>> grads;
  for (uint32_t stage = 0; stage < shape.num_stages; stage++) grads.push_back(model.stage(stage).grads());

  for (uint32_t stage = 0; stage < shape.num_stages; stage++) {
    std::vector<float> &parameters = model.stage(stage).parameters();
    const std::vector<float> kept = parameters;
    for (const Piece &piece : model.stage(stage).layout().pieces) {
      double norm = 0;
      for (size_t i = piece.offset; i < piece.offset + piece.size; i++) norm += grads[stage][i] * grads[stage][i];
      norm = std::sqrt(norm);
      const auto loss_at = [&](float by) {
        for (size_t i = piece.offset; i < piece.offset + piece.size; i++) {
          parameters[i] = kept[i] + by * grads[stage][i] / static_cast<float>(norm);
        }
        return model.step(0, num_microbatches, 1) * num_microbatches;
      };
      const double slope = (loss_at(length) - loss_at(-length)) / (2 * static_cast<double>(length));
      parameters = kept;
      expect(std::fabs(slope / norm - 1) < 0.02, "stage " + std::to_string(stage) + ", " + piece.name + ": slope " +
                                                     std::to_string(slope) + ", gradient " + std::to_string(norm));
    }
  }
}

// Two directions are added up as two copies, and are the same gradients but for rounding.
void directions_add_up(const Data &data, const Shape &shape) {
  Sequential one(shape, data, 1), two(shape, data, 1);
  expect(one.step(0, 4, 1) == two.step(0, 4, 2), "the loss does not depend on the directions");
  Check check(1e-5);
  for (uint32_t i = 0; i < shape.num_stages; i++) check.add(i, one.stage(i).grads(), two.stage(i).grads());
  expect(check.print(), "nor do the gradients");
}

void check_sees_what_differs() {
  const std::vector<float> right = {1, -2, 3}, wrong = {1, -2, 3.01f}, no_number = {1, NAN, 3};
  const auto agrees = [&](const std::vector<float> &grads) {
    Check check(1e-3);
    check.add(0, right, right);
    check.add(0, grads, right);
    return check.print();
  };
  expect(agrees(right), "the same agrees");
  expect(!agrees(wrong), "0.01 / 3 is too much");
  expect(!agrees(no_number), "what is not a number agrees with nothing");
  expect(!Check(1).print(), "nothing compared is nothing agreed");
}

} // namespace

int main(int count, char **arguments) {
  if (count != 2) return std::puts("model_test FILE: takes any text"), 2;
  Shape shape;
  shape.num_tokens = 16, shape.context = 4, shape.width = 16, shape.hidden = 8;
  shape.num_experts = 2, shape.num_blocks = 2, shape.num_stages = 3;
  const Data data(arguments[1], shape, 1);
  gradients_are_slopes(data, shape);
  directions_add_up(data, shape);
  check_sees_what_differs();
  std::printf("model_test: %d failed\n", num_failures);
  return num_failures == 0 ? 0 : 1;
}
