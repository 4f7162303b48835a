"""The C API from Python's ctypes: only the standard library, only what the header says."""

import ctypes as c
import sys
import threading

lib = c.CDLL(sys.argv[1])
lib.dualpipe_last_error.restype = c.c_char_p
lib.dualpipe_version_string.restype = c.c_char_p
lib.dualpipe_status_name.restype = c.c_char_p


def uint32s(*names):
    return [(name, c.c_uint32) for name in names]


def uint64s(*names):
    return [(name, c.c_uint64) for name in names]


class Options(c.Structure):
    _fields_ = uint32s("size", "kind", "num_ranks", "num_microbatches", "forward_only")


class StageCosts(c.Structure):
    _fields_ = uint64s("forward_ns", "input_ns", "weight_ns", "overlapped_ns",
                       "output_bytes", "activation_bytes", "parameter_bytes")


class Costs(c.Structure):
    _fields_ = uint32s("size", "reserved") + [("stages", c.POINTER(StageCosts)), ("num_stages", c.c_size_t)] \
        + uint64s("p2p_latency_ns", "p2p_bytes_per_second")


class Summary(c.Structure):
    _fields_ = uint32s("size", "source") + uint64s("num_ranks", "num_spans", "num_messages", "makespan_ns",
                                                   "lower_bound_ns") + [("bubble_share", c.c_double)]


class DualpipeError(Exception):
    def __init__(self, status):
        super().__init__(lib.dualpipe_last_error().decode())
        self.name = lib.dualpipe_status_name(status).decode()


def ok(status):
    if status:
        raise DualpipeError(status)


def create(kind, num_ranks, num_microbatches):
    options = Options(c.sizeof(Options), kind, num_ranks, num_microbatches, 0)
    schedule = c.c_void_p()
    ok(lib.dualpipe_schedule_create(c.byref(options), c.byref(schedule)))
    return schedule


def text(function, *args):
    length = c.c_size_t()
    ok(function(*args, None, c.c_size_t(0), c.byref(length)))
    buffer = c.create_string_buffer(length.value + 1)
    ok(function(*args, buffer, c.c_size_t(len(buffer)), c.byref(length)))
    return buffer.value.decode()


def a_schedule_is_simulated_and_drawn():
    schedule = create(1, 4, 8)
    assert len(text(lib.dualpipe_schedule_to_text, schedule).splitlines()) == 4
    stage = StageCosts(1000, 1000, 1000, 2500, 0, 1, 1)
    costs = Costs(c.sizeof(Costs), 0, c.pointer(stage), 1, 0, 0)
    timeline = c.c_void_p()
    ok(lib.dualpipe_simulate(schedule, c.byref(costs), c.byref(timeline)))
    ok(lib.dualpipe_schedule_free(schedule))
    summary = Summary(size=c.sizeof(Summary))
    ok(lib.dualpipe_timeline_summarize(timeline, c.byref(summary)))
    assert summary.num_ranks == 4 and 0 < summary.bubble_share < 1
    assert summary.makespan_ns >= summary.lower_bound_ns > 0
    assert text(lib.dualpipe_timeline_draw, timeline, c.c_uint32(1))
    ok(lib.dualpipe_timeline_free(timeline))


def a_mistake_is_an_exception():
    try:
        create(1, 3, 8)
    except DualpipeError as error:
        assert error.name == "DUALPIPE_ERROR_INVALID_ARGUMENT", error.name
        assert "num_ranks is 3, must be even" in str(error), error
    else:
        raise AssertionError("3 ranks were accepted")


def threads_do_not_read_each_others_errors():
    crossed = []

    def fail(kind):
        for _ in range(500):
            try:
                create(kind, 4, 8)
            except DualpipeError as error:
                if f"options->kind is {kind}," not in str(error):
                    crossed.append(str(error))

    threads = [threading.Thread(target=fail, args=(100 + i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not crossed, crossed


assert lib.dualpipe_version_string().decode() == sys.argv[2]
a_schedule_is_simulated_and_drawn()
a_mistake_is_an_exception()
threads_do_not_read_each_others_errors()
