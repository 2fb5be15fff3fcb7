"""A program that uses an Engine on threads and forks: each child uses it, opens its own, or drops
it, and then ends as Python does.

Arguments: bundle, runtime, mode, threads of the runtime, threads that classify, rounds of three
forks. Prints a list of what failed: an act and how its child ended (-14: it hung).
"""

import os
import signal
import sys
import threading
import time

import numpy as np

from patchdeploy.errors import RuntimeBackendError
from patchdeploy.runtime import Engine

path, runtime, mode, threads, busy, rounds = *sys.argv[1:4], *map(int, sys.argv[4:])
images = np.random.default_rng(0).integers(0, 256, (2, 24, 24, 3), np.uint8)
engine = Engine.open(path, runtime, mode=mode, threads=threads)
expected = engine.logits(images, "first", 24)
engine.prewarm_in_background("first", 16).result()
stop = threading.Event()


def work(k):
    while not stop.is_set():
        engine.logits(images, "first", 24)
        if k == 0:  # models are made and dropped at the moment of the fork, too
            engine.evict("second", 24)
            engine.prewarm("second", 24)


workers = [threading.Thread(target=work, args=(k,)) for k in range(busy)]
for worker in workers:
    worker.start()


def refused(call):
    try:
        call()
    except RuntimeBackendError as error:
        return str(error) == (
            f"the engine over {path} was opened in process {parent}, and this is process "
            f"{os.getpid()}, forked from it; a runtime's threads and locks do not survive a fork; "
            "open the Engine in the child"
        )
    return False


def use():
    calls = [
        lambda: engine.logits(images, "first", 24),
        lambda: engine.classify(images, "second", 24),
        lambda: engine.classify([], "first"),
        lambda: engine.swap_to("first"),
        lambda: engine.prewarm_in_background("first", 24),
        lambda: engine.evict("first", 24),
        lambda: engine.refresh(),
        lambda: engine.residents,
        lambda: engine.resident_bytes,
        lambda: engine.runtime,
        lambda: engine.classes("first"),
    ]
    return all(refused(call) for call in calls)


def open_own():
    with Engine.open(path, runtime, mode=mode, threads=threads) as own:
        return own.logits(images, "first", 24).tobytes() == expected.tobytes()


def drop():
    global engine
    engine.close()
    engine = None
    return True


parent, failed = os.getpid(), []
for act in (use, open_own, drop) * rounds:
    time.sleep(0.01)
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        sys.exit(0 if act() else 9)  # the usual end, which destroys what is left
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status != 0:
        failed.append(f"{act.__name__}: {status}")
stop.set()
for worker in workers:
    worker.join()
assert engine.logits(images, "first", 24).tobytes() == expected.tobytes()
sys.stdout.write(f"{failed}\n")
