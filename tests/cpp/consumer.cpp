// The C API from C++: the objects in std::unique_ptr, threads with errors of their own, a log.
#include <dualpipe.h>

#include <memory>
#include <string>
#include <thread>
#include <type_traits>
#include <vector>

#include "../c/check.h"

namespace {

template <typename Handle, dualpipe_status (*free_handle)(Handle)>
struct Free {
  void operator()(typename std::remove_pointer<Handle>::type *handle) const { CHECK_OK(free_handle(handle)); }
};
using Schedule = std::unique_ptr<dualpipe_schedule, Free<dualpipe_schedule_t, dualpipe_schedule_free>>;
using Timeline = std::unique_ptr<dualpipe_timeline, Free<dualpipe_timeline_t, dualpipe_timeline_free>>;

Schedule create(dualpipe_schedule_kind kind, uint32_t num_ranks, uint32_t num_microbatches) {
  dualpipe_schedule_options options = DUALPIPE_SCHEDULE_OPTIONS_INIT;
  options.kind = kind;
  options.num_ranks = num_ranks;
  options.num_microbatches = num_microbatches;
  dualpipe_schedule_t schedule = nullptr;
  CHECK_OK(dualpipe_schedule_create(&options, &schedule));
  return Schedule(schedule);
}

void dualpipe_v_is_simulated_and_drawn() {
  Schedule schedule = create(DUALPIPE_KIND_DUALPIPE_V, 4, 8);
  std::vector<dualpipe_stage_costs> stages(8, dualpipe_stage_costs{1000, 1000, 1000, 2500, 4096, 1, 1});
  dualpipe_costs costs = DUALPIPE_COSTS_INIT;
  costs.stages = stages.data();
  costs.num_stages = stages.size();
  costs.p2p_latency_ns = 10;
  costs.p2p_bytes_per_second = 1000000000;
  dualpipe_timeline_t raw = nullptr;
  CHECK_OK(dualpipe_simulate(schedule.get(), &costs, &raw));
  Timeline timeline(raw);
  dualpipe_timeline_summary summary = DUALPIPE_TIMELINE_SUMMARY_INIT;
  CHECK_OK(dualpipe_timeline_summarize(timeline.get(), &summary));
  CHECK(summary.makespan_ns >= summary.lower_bound_ns && summary.lower_bound_ns > 0);

  std::vector<dualpipe_span> spans(summary.num_spans);
  size_t count = 0;
  CHECK_OK(dualpipe_timeline_spans(timeline.get(), spans.data(), spans.size(), &count));
  CHECK(count == spans.size());
  for (const dualpipe_span &span : spans) CHECK(span.rank < 4 && span.start_ns <= span.end_ns);

  size_t length = 0;
  CHECK_OK(dualpipe_timeline_draw(timeline.get(), DUALPIPE_DRAW_SVG, nullptr, 0, &length));
  std::string picture(length + 1, '?');
  CHECK_OK(dualpipe_timeline_draw(timeline.get(), DUALPIPE_DRAW_SVG, &picture[0], picture.size(), &length));
  CHECK(picture.find('\0') == length);
}

void every_thread_has_its_own_last_error() {
  std::vector<std::thread> threads;
  for (uint32_t t = 0; t < 4; t++) {
    threads.emplace_back([t] {
      dualpipe_schedule_options options = DUALPIPE_SCHEDULE_OPTIONS_INIT;
      options.kind = 100 + t;
      for (int i = 0; i < 500; i++) {
        dualpipe_schedule_t schedule = nullptr;
        CHECK(dualpipe_schedule_create(&options, &schedule) == DUALPIPE_ERROR_INVALID_ARGUMENT);
        const std::string text = dualpipe_last_error();
        CHECK(text.find("options->kind is " + std::to_string(100 + t)) != std::string::npos);
      }
    });
  }
  for (std::thread &thread : threads) thread.join();
}

void failures_are_logged_if_someone_listens() {
  std::string lines;
  auto log = [](void *user_data, uint32_t level, const char *text) {
    CHECK(level == DUALPIPE_LOG_DEBUG);
    CHECK(dualpipe_schedule_free(reinterpret_cast<dualpipe_schedule_t>(1)) != DUALPIPE_OK);
    *static_cast<std::string *>(user_data) += std::string(text) + "\n";
  };
  CHECK_OK(dualpipe_set_log(log, &lines));
  CHECK(dualpipe_timeline_draw(nullptr, 0, nullptr, 0, nullptr) == DUALPIPE_ERROR_INVALID_HANDLE);
  CHECK_OK(dualpipe_set_log(nullptr, nullptr));
  CHECK(dualpipe_timeline_draw(nullptr, 0, nullptr, 0, nullptr) == DUALPIPE_ERROR_INVALID_HANDLE);
  CHECK(lines == "dualpipe_timeline_draw: timeline is NULL, must be a timeline\n");
}

}  // namespace

int main() {
  dualpipe_v_is_simulated_and_drawn();
  every_thread_has_its_own_last_error();
  failures_are_logged_if_someone_listens();
}
