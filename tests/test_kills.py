"""Trainings that are killed at any moment end as if they had not been: rows T8 and T9 of the table of faults."""

import random
import signal
import subprocess
import time

import pytest
from commands import COMPILING, STEPS, ended, same_end

pytestmark = pytest.mark.slow


def test_t8_twenty_kills_at_random_moments(commands, tmp_path):
    much = {"outer__num_steps": 160}
    ended(commands.train(tmp_path / "whole", **much), 0)
    moments = random.Random(0)  # noqa: S311
    reached = []
    starting = 0.0  # seconds until the first step
    for kill in range(20):
        began = time.monotonic()
        process = commands.start(commands.train_words(tmp_path / "killed", **much))
        if kill % 3 == 2:  # while it starts, loads, restores and compiles, else while it trains and saves
            time.sleep(moments.uniform(0, starting))
        else:
            wait_for_step(process)
            starting = time.monotonic() - began
            for _ in range(moments.randrange(4)):
                wait_for_step(process)
            time.sleep(moments.uniform(0, 0.05))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        found = tmp_path / "killed" / "checkpoints"
        reached.append(max((int(p.name) for p in found.glob("*") if p.name.isdigit()), default=0))
    assert reached == sorted(reached) and 0 < reached[-1] < 160
    ended(commands.train(tmp_path / "killed", **much), 0)
    same_end(tmp_path / "killed", tmp_path / "whole")


def wait_for_step(process: subprocess.Popen[str]) -> None:
    while not process.stdout.readline().startswith("step "):
        assert process.poll() is None, process.stderr.read()


KILLS = {
    "config written": "import jaxmeta.runfiles as m; wrap(m, 'claim_run', after=lambda *_: {do})",
    "compiling": COMPILING,
    "best saved, metrics not": "import jaxmeta.keeping as m; wrap(m.Keeper, 'keep_if_best', after=lambda *_: {do})",
    "metrics written, state not": "import jaxmeta.keeping as m; wrap(m.Keeper, 'keep', before=lambda *_, **k: {do})",
    "save begun": "import jaxmeta.checkpoints as m; wrap(m, 'save', after=lambda c, s, _: s.step == 8 and {do})",
    "save done": "import jaxmeta.checkpoints as m; wrap(m, 'finish', after=lambda c: 10 in c.all_steps() and {do})",
}


def test_t8_t9_kills_between_the_writes_of_a_step(commands, whole, tmp_path):
    run = tmp_path / "run"
    for fault in KILLS.values():
        done = commands.train(run, fault=fault.format(do="send(signal.SIGKILL)"), **STEPS)
        assert done.returncode == -signal.SIGKILL, done.stderr
    ended(commands.train(run, **STEPS), 0)
    same_end(run, whole)
