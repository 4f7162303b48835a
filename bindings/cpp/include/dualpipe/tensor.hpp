/// Tensors: what crosses a boundary between stages, and views of what a task is handed.
#ifndef DUALPIPE_TENSOR_HPP
#define DUALPIPE_TENSOR_HPP

#include <dualpipe/executor.h>
#include <dualpipe/span.hpp>
#include <dualpipe/task.h>
#include <dualpipe/tensor.h>

#include <algorithm>
#include <cassert>
#include <cstddef>
#include <cstdint>
#include <iterator>

namespace dualpipe {

/// What the elements of tensors are, in DLPack's terms.
struct DType {
  static constexpr DLDataType i8{0, 8, 1}, i16{0, 16, 1}, i32{0, 32, 1}, i64{0, 64, 1};
  static constexpr DLDataType u8{1, 8, 1}, u16{1, 16, 1}, u32{1, 32, 1}, u64{1, 64, 1};
  static constexpr DLDataType f16{2, 16, 1}, f32{2, 32, 1}, f64{2, 64, 1}, bf16{4, 16, 1};
};

/// One tensor that crosses a boundary: dense, row-major.
struct TensorSpec : dualpipe_tensor_spec {
  /// Elements of 4 to 128 bits; at most 8 dimensions, each at least 0; at most 2^40 bytes in all.
  TensorSpec(DLDataType elements, Span<const std::int64_t> dimensions) : dualpipe_tensor_spec() {
    dtype = elements;
    ndim = static_cast<std::uint32_t>(dimensions.size()); // the library refuses too many
    std::copy_n(dimensions.begin(), std::min(dimensions.size(), std::size(shape)), shape);
  }
};

// C reads rows of them.
static_assert(sizeof(TensorSpec) == sizeof(dualpipe_tensor_spec));

/// A tensor that a task reads, valid until the task returns.
class Tensor {
public:
  explicit Tensor(const dualpipe_tensor &in_c) noexcept : in_c_(&in_c) {}

  /// Whether it is there: a gradient may be absent.
  bool is_present() const noexcept { return in_c_->is_present != 0; }
  /// The first element, in ordinary memory or in that of a CUDA device.
  const void *data() const noexcept { return address(); }
  /// Elements in each dimension.
  Span<const std::int64_t> shape() const noexcept {
    return {in_c_->dl.shape, static_cast<std::size_t>(in_c_->dl.ndim)};
  }
  /// How many elements.
  std::size_t size() const noexcept {
    std::size_t size = 1;
    for (const std::int64_t count : shape()) size *= static_cast<std::size_t>(count);
    return size;
  }
  DLDataType dtype() const noexcept { return in_c_->dl.dtype; }
  /// Its elements, row by row; T has as many bits as the dtype. Only in ordinary memory.
  template <class T>
  Span<const T> values() const noexcept {
    assert(sizeof(T) * 8 == dtype().bits * std::size_t{dtype().lanes});
    return {static_cast<const T *>(data()), size()};
  }
  /// As DLPack has it.
  const DLTensor &dl() const noexcept { return in_c_->dl; }
  /// With the caller's memory, the word that came with it.
  void *owner() const noexcept { return in_c_->owner; }

protected:
  void *address() const noexcept {
    if (in_c_->dl.data == nullptr) return nullptr;
    return static_cast<char *>(in_c_->dl.data) + in_c_->dl.byte_offset;
  }

private:
  const dualpipe_tensor *in_c_;
};

/// A tensor that a task writes, valid until the task returns.
class OutTensor : public Tensor {
public:
  explicit OutTensor(dualpipe_tensor &in_c) noexcept : Tensor(in_c), in_c_(&in_c) {}

  void *data() const noexcept { return address(); }
  template <class T>
  Span<T> values() const noexcept {
    assert(sizeof(T) * 8 == dtype().bits * std::size_t{dtype().lanes});
    return {static_cast<T *>(data()), size()};
  }
  DLTensor &dl() const noexcept { return in_c_->dl; }

  /// There is no such gradient.
  void set_absent() const noexcept { in_c_->is_present = 0; }
  /// With the caller's memory: where the tensor is; the owner comes back with it to Memory::release.
  void place(void *data, void *owner) const noexcept {
    in_c_->dl.data = data;
    in_c_->owner = owner;
  }
  /// Where shapes are exchanged: a smaller size in a dimension.
  void shrink(std::size_t dimension, std::int64_t count) const noexcept {
    assert(dimension < shape().size() && count >= 0 && count <= shape()[dimension]);
    in_c_->dl.shape[dimension] = count;
  }

private:
  dualpipe_tensor *in_c_;
};

/// The tensors of a message, in order.
template <class View, class InC>
class TensorList {
public:
  /// Over views, which it makes.
  class iterator {
  public:
    using iterator_category = std::input_iterator_tag;
    using value_type = View;
    using difference_type = std::ptrdiff_t;
    using pointer = void;
    using reference = View;

    explicit iterator(InC *at) noexcept : at_(at) {}
    View operator*() const noexcept { return View(*at_); }
    iterator &operator++() noexcept {
      ++at_;
      return *this;
    }
    iterator operator++(int) noexcept { return iterator(at_++); }
    bool operator==(const iterator &other) const noexcept { return at_ == other.at_; }
    bool operator!=(const iterator &other) const noexcept { return at_ != other.at_; }

  private:
    InC *at_;
  };

  TensorList(InC *first, std::size_t size) noexcept : first_(first), size_(size) {}

  std::size_t size() const noexcept { return size_; }
  bool empty() const noexcept { return size_ == 0; }
  View operator[](std::size_t i) const noexcept {
    assert(i < size_);
    return View(first_[i]);
  }
  iterator begin() const noexcept { return iterator(first_); }
  iterator end() const noexcept { return iterator(first_ + size_); }

private:
  InC *first_;
  std::size_t size_;
};

using Tensors = TensorList<Tensor, const dualpipe_tensor>;
using OutTensors = TensorList<OutTensor, dualpipe_tensor>;

} // namespace dualpipe

#endif // DUALPIPE_TENSOR_HPP
