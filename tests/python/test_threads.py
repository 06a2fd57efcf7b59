"""The GIL, concurrent callers and fork."""

import os
import threading
import time

import numpy as np
import tessera


def big():
    return np.random.default_rng(0).standard_normal((1, 3000, 8, 64), dtype=np.float32)


def test_other_python_threads_run_during_a_call():
    x = big()
    tessera.flash_attn_func(x, x, x)
    done = threading.Event()
    ticks = [time.perf_counter()]

    def count():
        while not done.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.001)

    counter = threading.Thread(target=count)
    counter.start()
    start = time.perf_counter()
    tessera.flash_attn_func(x, x, x)
    end = time.perf_counter()
    done.set()
    counter.join()
    inside = [tick for tick in ticks if start < tick < end]
    assert len(inside) >= 3, f"{len(inside)} ticks in a call of {end - start:.3f} s"


def test_concurrent_callers_get_their_own_results():
    x = np.random.default_rng(1).standard_normal((4, 60, 2, 32), dtype=np.float32)
    expected = [tessera.flash_attn_func(x[i : i + 1], x[:1], x[:1]) for i in range(4)]
    wrong = []

    def work(i):
        for _ in range(30):
            if not np.array_equal(tessera.flash_attn_func(x[i : i + 1], x[:1], x[:1]), expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_forked_child_computes():
    x = np.random.default_rng(2).standard_normal((1, 200, 4, 32), dtype=np.float32)
    tessera.set_num_threads(2)
    expected = tessera.flash_attn_func(x, x, x)
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(tessera.flash_attn_func(x, x, x), expected) else 1)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.01)
    else:
        os.kill(child, 9)
        os.waitpid(child, 0)
        raise AssertionError("the child hangs")
    tessera.set_num_threads(0)
    assert os.waitstatus_to_exitcode(status) == 0
