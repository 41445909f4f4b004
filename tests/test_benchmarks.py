"""The benchmarks' flags and what they read; their measurements are of the machine."""

import dataclasses
import json
from types import SimpleNamespace

import measuring
import pytest
import scaling_figure

from jaxmeta.errors import InputError


@dataclasses.dataclass(frozen=True)
class Flags:
    sizes: tuple[int, ...] = (1, 2)
    seeds: tuple[int, ...] = (0,)
    steps: int = 3


def test_flags_are_read_with_debug_for_run_command():
    assert measuring.read_flags(Flags, ["--sizes", "4", "--debug", "--seeds", "0", "1"]) == Flags((4,), (0, 1))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--sizes"], "sizes: give one value or more"),
        (["--sizes", "2", "0"], r"--sizes \(2, 0\) must be positive"),
        (["--steps", "-1"], "--steps -1 must be positive"),
    ],
)
def test_flags_that_measure_nothing_are_refused(words, told):
    with pytest.raises(InputError, match=told):
        measuring.read_flags(Flags, words)


def test_scaling_is_read_by_implementation_and_kind():
    def line(implementation, devices, *milliseconds):
        rows = [
            {"scenes": scenes, "devices": devices, "ms per scene": ms}
            for scenes, ms in zip(dict.fromkeys((16 * devices, 64)), milliseconds, strict=True)
        ]
        return json.dumps({"benchmark": "step_time", "implementation": implementation, "rows": rows})

    other = json.dumps({"benchmark": "time_to_psnr", "rows": [{"seed": 0}]})
    log = ["== 1 devices, auto", "scenes  devices", line("auto", 1, 2.0, 1.0), other, line("xla", 4, 0.5)]
    assert scaling_figure.read_rates("\n".join(log)) == {
        "auto, 16 on each": {1: 500.0},
        "auto, 64 in all": {1: 1000.0},
        "xla, 16 on each": {4: 2000.0},  # 64 scenes on four devices are both
        "xla, 64 in all": {4: 2000.0},
    }


def test_an_original_that_fails_or_prints_no_time_is_told(tmp_path):
    script = tmp_path / "original.py"
    for code, told in (("raise SystemExit('no GPU')", "ended with 1: no GPU"), ("print('done')", "printed no")):
        script.write_text(code)
        with pytest.raises(InputError, match=told):
            measuring.original_milliseconds(script, 1)
    script.write_text("print('cpu: 12.5 ms per scene-iteration')")
    assert measuring.original_milliseconds(script, 1) == 12.5


def test_times_in_kernels_are_summed_by_name():
    def events(*pairs):
        return [SimpleNamespace(name=name, duration_ns=duration) for name, duration in pairs]

    streams = SimpleNamespace(
        name="Stream #7", events=events(("multiply", 5e6), ("ncclAllReduce", 1e6), ("multiply", 2e6))
    )
    modules = SimpleNamespace(name="XLA Modules", events=events(("train", 9e6)))
    spent = measuring._by_name(SimpleNamespace(lines=[streams, modules]))
    assert spent == pytest.approx({"multiply": 7e-3, "ncclAllReduce": 1e-3})
    assert [measuring.is_collective(name) for name in spent] == [False, True]
