// The race checker. A segment keeps the last writes and the reads since, one of each per component: an access that
// comes after a component's later op comes after its earlier ones. A write makes the marks before it superfluous where
// whatever comes after the write must come after them (Components::carries); elsewhere they stay.
#include "checker.h"

#include <algorithm>
#include <iterator>

namespace standin {

namespace {

// Makes `offset` a border between segments.
void split(History &history, uint64_t offset) {
  auto next = history.upper_bound(offset);
  if (next == history.begin()) return;
  auto segment = std::prev(next);
  if (segment->first == offset || segment->second.end <= offset) return;
  history.emplace_hint(next, offset, segment->second);
  segment->second.end = offset;
}

// Segments for the bytes of [begin, end) that nothing has accessed yet.
void fill_gaps(History &history, uint64_t begin, uint64_t end) {
  auto next = history.lower_bound(begin);
  while (begin < end) {
    if (next != history.end() && next->first == begin) {
      begin = next->second.end;
      ++next;
      continue;
    }
    const uint64_t gap_end = next == history.end() ? end : std::min(end, next->first);
    history.emplace_hint(next, begin, Segment{gap_end, {}});
    begin = gap_end;
  }
}

bool are_same(const std::vector<Mark> &a, const std::vector<Mark> &b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](const Mark &x, const Mark &y) {
    return x.component == y.component && x.time == y.time && x.is_write == y.is_write;
  });
}

}  // namespace

uint32_t Checker::intern(const std::string &label) {
  const auto [entry, is_new] = label_numbers_.emplace(label, static_cast<uint32_t>(labels_.size()));
  if (is_new) labels_.push_back(label);
  return entry->second;
}

std::string Checker::name(const Mark &mark) const {
  return text("\"%s\" (#%llu, %s)", labels_[mark.label].c_str(), static_cast<unsigned long long>(mark.ordinal),
              components_.name(mark.component).c_str());
}

void Checker::access(History &history, const std::string &allocation, uint64_t begin, uint64_t end, const Mark &mark,
                     const Clock &clock) {
  split(history, begin);
  split(history, end);
  fill_gaps(history, begin, end);
  auto segment = history.find(begin);
  while (segment != history.end() && segment->first < end) {
    // Neighbours that tell the same story are one range, in the report and afterwards.
    for (auto next = std::next(segment); next != history.end() && next->first < end;
         next = history.erase(next)) {
      if (!are_same(segment->second.marks, next->second.marks)) break;
      segment->second.end = next->second.end;
    }
    check(segment->second, allocation, segment->first, mark, clock);
    add(segment->second, mark);
    ++segment;
  }
}

void Checker::check(const Segment &segment, const std::string &allocation, uint64_t begin, const Mark &mark,
                    const Clock &clock) {
  for (const Mark &earlier : segment.marks) {
    const bool conflicts = earlier.is_write || mark.is_write;
    if (!conflicts || clock.at(earlier.component) >= earlier.time) continue;
    problems_.add(text("race: %s by ", mark.is_write ? "write" : "read") + name(mark) +
                  text(" does not come after %s by ", earlier.is_write ? "write" : "read") + name(earlier) + ": " +
                  allocation +
                  text(" bytes [%llu, %llu)", static_cast<unsigned long long>(begin),
                       static_cast<unsigned long long>(segment.end)));
  }
}

void Checker::add(Segment &segment, const Mark &mark) const {
  const int32_t rank = components_.rank(mark.component);
  auto is_superfluous = [&](const Mark &earlier) {
    if (mark.is_write) return components_.carries(rank, earlier.component);
    return !earlier.is_write && earlier.component == mark.component;
  };
  auto &marks = segment.marks;
  marks.erase(std::remove_if(marks.begin(), marks.end(), is_superfluous), marks.end());
  marks.push_back(mark);
}

}  // namespace standin
