"""A forked child: an error that says what to do, an engine of its own, and nothing that hangs.

Each case runs in a process of its own, because a fork takes all of this process with it.
"""

import subprocess
import sys

import pytest
from bundle_cases import make_bundle

PROGRAM = """
import os, signal, sys, threading, time
import numpy as np
from patchdeploy.errors import RuntimeBackendError
from patchdeploy.runtime import Engine

path, runtime, mode, threads, busy = *sys.argv[1:4], *map(int, sys.argv[4:])
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
    return all([refused(call) for call in calls])


def open_own():
    with Engine.open(path, runtime, mode=mode, threads=threads) as own:
        return own.logits(images, "first", 24).tobytes() == expected.tobytes()


def drop():
    global engine
    engine.close()
    engine = None
    return True


parent, failed = os.getpid(), []
for act in (use, open_own, drop):
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
print(failed)
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("fork") / "b")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")
@pytest.mark.parametrize(
    ("runtime", "mode", "threads", "busy"),
    [
        ("litert", "resident", 2, 3),
        ("onnxruntime", "resident", 2, 0),
        ("onnxruntime", "resident", 1, 3),
        ("onnxruntime", "per_run", 2, 3),
    ],
)
def test_a_forked_child_gets_an_error_or_opens_its_own_and_never_hangs(
    bundle, runtime, mode, threads, busy
):
    command = [sys.executable, "-c", PROGRAM, bundle.path, runtime, mode, threads, busy]
    done = subprocess.run(
        [str(one) for one in command], capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == "[]", done.stdout + done.stderr[-2000:]
