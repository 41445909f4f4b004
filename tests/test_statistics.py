"""What scores of some scenes tell, by hand."""

import numpy as np
import pytest

from jaxmeta.statistics import estimate, steps_until_near


def test_estimate_by_hand():
    # The mean of 20, 21, 25 is 22; squares about it 4 + 1 + 9 over 2 are 7. A table of Student's t has 4.303 for two
    # degrees of freedom.
    found = estimate(np.array([20.0, 21.0, 25.0]))
    assert (found.mean, found.num_scenes) == (22.0, 3)
    np.testing.assert_allclose(found.std, np.sqrt(7))
    np.testing.assert_allclose([found.low, found.high], 22 + np.array([-1, 1]) * 4.303 * np.sqrt(7 / 3), rtol=1e-4)


def test_the_interval_holds_the_mean_as_often_as_it_says(generator):
    low, high = np.array([estimate(scores)[2:4] for scores in generator.normal(3.0, 2.0, (4000, 5))]).T
    # 4000 trials with 0.95: a standard deviation of 0.0034.
    assert np.mean((low < 3.0) & (high > 3.0)) == pytest.approx(0.95, abs=0.014)


def test_what_is_not_finite_is_left_out():
    found = estimate(np.array([20.0, np.nan, 21.0, 25.0, np.inf]))
    assert found == estimate(np.array([20.0, 21.0, 25.0]))


def test_one_scene_has_no_spread_and_none_no_mean():
    one, none = estimate(np.array([7.0])), estimate(np.array([np.nan]))
    assert one.mean == 7 and none.num_scenes == 0
    assert np.isnan([one.std, one.low, one.high, *none[:4]]).all()


def test_steps_until_near_by_hand():
    stages = (0, 1, 10, 100)
    psnr = np.array([
        [10.0, 19.4, 19.6, 20.0],  # within 0.5 dB of 20 from 10 steps on
        [10.0, 19.6, 19.4, 20.0],  # at 1 step, but it did not stay
        [20.7, 20.6, 20.4, 20.0],  # better before than in the end
        [10.0, 11.0, 12.0, 20.0],
        [10.0, np.nan, 20.0, 20.0],
    ])  # fmt: skip
    np.testing.assert_array_equal(steps_until_near(psnr, stages), [10, 100, 10, 100, np.nan])
