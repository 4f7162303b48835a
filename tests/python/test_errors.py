"""Every failure is an exception of its own class, with the library's words; callbacks of the process; fork; exit."""

import logging
import pickle
import subprocess
import sys
import threading

import dualpipe
import numpy as np
import pytest
from dualpipe import errors


def test_every_status_has_a_class():
    assert sorted(errors.CLASSES) == list(range(1, 17))
    for status, kind in errors.CLASSES.items():
        error = errors.of_status(status, "words")
        assert (type(error), error.status, str(error)) == (kind, status, "words")
        assert isinstance(error, dualpipe.Error)
        assert isinstance(error, RuntimeError)
        assert getattr(dualpipe, kind.__name__) is kind
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), again.status, str(again)) == (kind, status, "words")
    assert type(errors.of_status(99, "words")) is dualpipe.Error
    assert errors.of_status(99, "words").status == 99


def test_errors_are_the_builtin_ones_too():
    assert issubclass(dualpipe.InvalidArgument, ValueError)
    assert issubclass(dualpipe.Timeout, TimeoutError)


@pytest.mark.parametrize(
    ("kind", "ranks", "microbatches", "words"),
    [
        ("dualpipe", 3, 8, "num_ranks is 3, must be even"),
        ("dualpipe", 4, 4, "num_microbatches is 4"),
        ("1f1b", 0, 8, "num_ranks is 0"),
        ("1f1b", -1, 8, "ranks is -1, must be 0 to"),
        ("1f1b", 2**32, 8, "ranks is 4294967296, must be 0 to"),
        ("1f1b", 4, 2**32 - 1, "microbatches is 4294967295"),
        ("zigzag", 4, 8, "kind is 'zigzag', must be one of 'dualpipe', 'dualpipe_v', '1f1b'"),
    ],
)
def test_bad_schedules_are_refused_in_words(kind, ranks, microbatches, words):
    with pytest.raises(ValueError, match=words) as caught:
        dualpipe.Schedule(kind, ranks, microbatches)
    assert isinstance(caught.value, dualpipe.InvalidArgument)
    assert caught.value.status == 1


def test_other_than_integers_are_type_errors():
    for bad in (1.5, "4", None):
        with pytest.raises(TypeError, match="ranks is .*, must be an integer"):
            dualpipe.Schedule("1f1b", bad, 4)
    assert dualpipe.Schedule("1f1b", np.int64(2), np.uint8(4)).ranks == 2


def test_threads_do_not_read_each_others_errors():
    crossed = []

    def fail(rank):
        schedule = dualpipe.Schedule("1f1b", 2, 2)
        for _ in range(300):
            try:
                schedule.order(rank)
            except dualpipe.InvalidArgument as error:
                if f"rank is {rank}," not in str(error):
                    crossed.append(str(error))

    threads = [threading.Thread(target=fail, args=(100 + k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert crossed == []


def test_the_log_goes_where_it_is_set(caplog):
    caplog.set_level(logging.DEBUG, "dualpipe")
    dualpipe.set_log(logging.getLogger("dualpipe").log)
    try:
        with pytest.raises(dualpipe.InvalidArgument) as caught:
            dualpipe.Schedule("1f1b", 0, 1)
    finally:
        dualpipe.set_log(None)
    assert ("dualpipe", logging.DEBUG, str(caught.value)) in caplog.record_tuples
    caplog.clear()
    with pytest.raises(dualpipe.InvalidArgument):
        dualpipe.Schedule("1f1b", 0, 1)
    assert caplog.record_tuples == []


def balanced():
    return dualpipe.eplb.balance(np.random.default_rng(1).random((64, 32)), num_gpus=8, num_slots=48, num_threads=1)


def test_progress_is_told_and_may_stop_or_raise():
    told = []
    try:
        dualpipe.set_progress(lambda done, total: told.append((done, total)))
        balanced()
        assert told
        assert all(0 <= done <= total for done, total in told)
        dualpipe.set_progress(lambda done, total: False)
        with pytest.raises(dualpipe.Cancelled):
            balanced()
        dualpipe.set_progress(lambda done, total: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            balanced()
    finally:
        dualpipe.set_progress(None)
    balanced()


def run_script(script):
    """Runs a program of its own; fails unless it ends well, soon and silently."""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", "import dualpipe, gc, os, sys\n" + script]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def test_a_child_of_fork_keeps_schedules_and_refuses_executors():
    run_script("""
schedule = dualpipe.Schedule("dualpipe_v", 1, 2)
inproc = dualpipe.Inproc(1)
executor = dualpipe.Executor(schedule, 0, inproc=inproc, tensors=[])
executor.start(lambda task: None)
executor.wait()
child = os.fork()
if child == 0:
    assert schedule.order(0) and dualpipe.Schedule("1f1b", 1, 1).order(0)
    try:
        executor.step(lambda task: None)
    except dualpipe.Forked:
        pass
    else:
        os._exit(1)
    dualpipe.eplb.balance([[1, 2]], num_gpus=1, num_slots=2)
    del schedule, executor, inproc
    gc.collect()
    sys.exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
executor.step(lambda task: None)
""")


def test_a_program_may_end_while_a_step_is_running():
    run_script("""
import time
dualpipe.set_log(lambda level, text: None)
schedule = dualpipe.Schedule("dualpipe_v", 1, 2)
executor = dualpipe.Executor(schedule, 0, inproc=dualpipe.Inproc(1), tensors=[], timeout=5)
executor.start(lambda task: time.sleep(0.02))
""")


def test_the_library_must_be_where_it_is_said_to_be():
    script = "import os; os.environ['DUALPIPE_LIBRARY'] = '/nowhere/libdualpipe.so'; import dualpipe"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert "ImportError: there is no /nowhere/libdualpipe.so, which DUALPIPE_LIBRARY names" in ended.stderr
