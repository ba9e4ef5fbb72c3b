"""Learning rates by hand."""

import numpy as np
import pytest

from configs.errors import UserError
from configs.schema import Config, OptimizerConfig
from trainer.optimizers.schedule import Schedule, check_intervals


def rates(num_steps=10, **fields):
    schedule = Schedule(OptimizerConfig(learning_rate=1.0, **fields), num_steps)
    return [float(schedule(step)) for step in range(num_steps)]


def test_linear():
    found = rates(schedule="linear", warmup_fraction=0.2)
    expected = [0.5, 1.0, 1.0, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_linear_to_a_final_rate_without_warmup():
    found = rates(num_steps=4, warmup_fraction=0.0, final_learning_rate=0.2)
    np.testing.assert_allclose(found, [1.0, 0.8, 0.6, 0.4], rtol=1e-6)


def test_cosine():
    found = rates(schedule="cosine", warmup_steps=2, final_learning_rate=0.1)
    assert found[:3] == [0.5, 1.0, 1.0]
    assert found[6] == pytest.approx(0.55)  # half way
    assert found == sorted(found[:2]) + sorted(found[2:], reverse=True)


def test_warmup_stable_decay():
    fields = {"schedule": "wsd", "warmup_steps": 2, "decay_fraction": 0.4}
    expected = [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    expected += [1 - np.sqrt(part / 4) for part in (1, 2, 3)]
    np.testing.assert_allclose(rates(**fields), expected, rtol=1e-6)
    # To a rate other than 0; and a decay that would begin before the warmup's end.
    last = rates(**fields, final_learning_rate=0.2)[-1]
    assert last == pytest.approx(0.2 + 0.8 * (1 - np.sqrt(3 / 4)))
    late = rates(schedule="wsd", warmup_steps=8, decay_fraction=0.9)
    np.testing.assert_allclose(late[6:], [7 / 8, 1, 1, 1 - np.sqrt(1 / 2)], rtol=1e-6)


def test_the_stable_part_is_that_of_a_longer_run():
    short, long = (rates(n, schedule="wsd", warmup_steps=3) for n in (10, 20))
    assert short[:8] == long[:8]


def test_inverse_sqrt():
    found = rates(num_steps=16, schedule="inverse_sqrt", warmup_steps=4)
    np.testing.assert_allclose(found[:4], [0.25, 0.5, 0.75, 1.0])
    assert found[15] == pytest.approx(0.5)


def test_constant():
    found = rates(num_steps=4, schedule="constant", warmup_fraction=0.5)
    assert found == [0.5, 1.0, 1.0, 1.0]


def test_relative_step():
    found = rates(num_steps=5, schedule="relative_step")
    np.testing.assert_allclose(found, np.arange(1, 6) ** -0.5, rtol=1e-6)
    schedule = Schedule(
        OptimizerConfig(learning_rate=1e-2, schedule="relative_step"), 5
    )
    assert float(schedule(4)) == pytest.approx(1e-2)


def test_the_rate_after_the_last_step_stays_in_bounds():
    schedule = Schedule(OptimizerConfig(learning_rate=1.0), 10)
    assert float(schedule(50)) == 0.0


def test_a_warmup_as_long_as_the_run_is_refused(caplog):
    config = Config()
    config.optimizer.warmup_steps = 100
    with pytest.raises(UserError, match="less than the steps of the run"):
        check_intervals(config, 100)
    config.training.evaluation_interval = 500
    check_intervals(config, 101)
    assert "`training.evaluation_interval` is 500, and the run has 101" in caplog.text
