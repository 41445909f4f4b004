"""Where scenes are kept does not change what is computed, and a failure on the way is not lost."""

import jax
import numpy as np
import pytest

from jaxmeta.feeding import FILLER, chunks, made_ahead, resolve_residency
from jaxmeta.training import plan_batches

SCENES = {"a": np.arange(7.0), "b": np.arange(14).reshape(7, 2)}


@pytest.mark.parametrize("residency", ["device", "host"])
@pytest.mark.parametrize("scenes_per_step", [1, 3, 9])
def test_places_lead_to_the_scenes_of_the_batches(mesh8, residency, scenes_per_step):
    plan = plan_batches(0, 2, 9, steps_per_chunk=3, num_scenes=7, scenes_per_step=scenes_per_step)
    fed = list(chunks(SCENES, plan, mesh8, residency=residency))
    # Steps 2 to 9 in chunks of 3, 3 and 1.
    assert [chunk.batches.shape for chunk in fed] == [(3, scenes_per_step), (3, scenes_per_step), (1, scenes_per_step)]
    assert len({str(jax.tree.map(np.shape, chunk[1:])) for chunk in fed}) == 1
    for chunk in fed:
        counted = chunk.padded != FILLER
        assert counted.sum() == chunk.batches.size
        steps = len(chunk.batches)
        for name, leaf in SCENES.items():
            if residency == "host":
                reached = np.asarray(chunk.sent[name])[:steps, :scenes_per_step]
            else:
                reached = np.asarray(chunk.resident[name])[chunk.padded[:steps, :scenes_per_step]]
            np.testing.assert_array_equal(reached, leaf[chunk.batches])


def test_a_run_that_is_shorter_than_a_chunk_computes_no_more(mesh8):
    plan = plan_batches(0, 0, 2, steps_per_chunk=50, num_scenes=7, scenes_per_step=3)
    (chunk,) = chunks(SCENES, plan, mesh8, residency="device")
    assert len(chunk.padded) == 2


def test_a_device_gets_the_scenes_that_it_adapts_and_no_others(mesh8):
    plan = plan_batches(0, 0, 4, steps_per_chunk=2, num_scenes=7, scenes_per_step=9)
    for chunk in chunks(SCENES, plan, mesh8, residency="host"):
        for shard in chunk.sent["b"].addressable_shards:
            first = 2 * shard.device.id  # nine scenes on eight devices: two places each, with fillers
            np.testing.assert_array_equal(shard.data, SCENES["b"][chunk.padded[:, first : first + 2]])


def test_auto_keeps_the_scenes_where_they_fit(monkeypatch):
    class Device:
        def __init__(self, limit):
            self.limit = limit

        def memory_stats(self):
            return self.limit and {"bytes_limit": self.limit}

    size = SCENES["a"].nbytes + SCENES["b"].nbytes
    for limit, expected in ((None, "device"), (2 * size, "device"), (2 * size - 1, "host")):
        monkeypatch.setattr("jax.local_devices", lambda limit=limit: [Device(limit)])
        assert resolve_residency("auto", SCENES) == expected
        assert resolve_residency("host", SCENES) == "host"


def test_t20_a_failure_in_the_thread_is_raised_where_its_item_is_due():
    def make(item: int) -> int:
        if item == 2:
            raise OSError("scene 2 is gone")
        return item

    made = made_ahead(make, [0, 1, 2, 3])
    assert [next(made), next(made)] == [0, 1]
    with pytest.raises(OSError, match="scene 2 is gone"):
        next(made)
