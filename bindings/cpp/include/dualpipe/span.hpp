/// Views of values in a row.
#ifndef DUALPIPE_SPAN_HPP
#define DUALPIPE_SPAN_HPP

#include <cstddef>
#include <initializer_list>
#include <iterator>
#include <type_traits>
#include <utility>

namespace dualpipe {

/// Values in a row that somebody else owns: as std::span of C++20, to and from which it converts.
template <class T>
class Span {
public:
  using element_type = T;
  using value_type = std::remove_cv_t<T>;
  using iterator = T *;

  constexpr Span() noexcept = default;
  constexpr Span(T *data, std::size_t size) noexcept : data_(data), size_(size) {}

  /// Of anything that has data and size: std::vector, std::array, std::string, std::span.
  template <class Range, class = std::enable_if_t<std::is_convertible_v<
                             std::remove_pointer_t<decltype(std::data(std::declval<Range &>()))> (*)[], T (*)[]>>>
  constexpr Span(Range &&range) noexcept : data_(std::data(range)), size_(std::size(range)) {}

  /// Of a list, which lives as long as the statement.
  template <class U = T, class = std::enable_if_t<std::is_const_v<U>>>
  constexpr Span(std::initializer_list<value_type> list) noexcept : size_(list.size()) {
    data_ = std::data(list);
  }

  constexpr T *data() const noexcept { return data_; }
  constexpr std::size_t size() const noexcept { return size_; }
  constexpr bool empty() const noexcept { return size_ == 0; }
  constexpr T *begin() const noexcept { return data_; }
  constexpr T *end() const noexcept { return data_ + size_; }
  constexpr T &operator[](std::size_t i) const noexcept { return data_[i]; }

private:
  T *data_ = nullptr;
  std::size_t size_ = 0;
};

} // namespace dualpipe

#endif // DUALPIPE_SPAN_HPP
