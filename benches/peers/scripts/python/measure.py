"""Measures one way to call another process, and prints the rows that `peers` reads. Arguments: SECONDS for each figure, CPU of the worker."""
import collections
import ctypes
import json
import os
import signal
import sys
import time

SIZES = [64, 64 << 10]
CROWD = 256
PR_SET_PDEATHSIG = 1


def echo(payload):
    return payload


def enter():
    """What a worker does first: it goes to its processor, and ends with its manager."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if sys.argv[2] != "any":
        os.sched_setaffinity(0, {int(sys.argv[2])})


def measure(submit, result):
    """`submit` sends a payload, `result` waits for what it gave."""
    seconds = float(sys.argv[1])
    for size in SIZES:
        payload = b"x" * size
        alone(submit, result, payload, seconds / 10)
        times = sorted(alone(submit, result, payload, seconds))
        crowd(submit, result, payload, seconds / 10)
        rate = crowd(submit, result, payload, seconds)
        p50, p99 = (times[int(len(times) * share)] * 1e6 for share in (0.5, 0.99))
        print(json.dumps({"bytes": size, "p50": p50, "p99": p99, "rate": rate}), flush=True)


def alone(submit, result, payload, seconds):
    times = []
    end = time.perf_counter() + seconds
    now = 0
    while now < end:
        began = time.perf_counter()
        check(result(submit(payload)), payload)
        now = time.perf_counter()
        times.append(now - began)
    return times


def crowd(submit, result, payload, seconds):
    began = time.perf_counter()
    under_way = collections.deque(submit(payload) for _ in range(CROWD))
    count = 0
    while under_way:
        check(result(under_way.popleft()), payload)
        count += 1
        if time.perf_counter() - began < seconds:
            under_way.append(submit(payload))
    return count / (time.perf_counter() - began)


def check(answer, payload):
    if answer != payload:
        raise ValueError("a wrong answer")
