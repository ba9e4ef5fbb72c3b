"""Goodput, of a run that is interrupted by a script."""

import datetime
import random

import pytest

from trainer.run_dir import goodput, journal, json_files, layout
from trainer.run_dir.metrics import MetricsLog, load

STEP_SECONDS = 0.5
TOKENS_PER_STEP = 1000
START_SECONDS = 180.0  # a VM, the installation, the compilation
SAVE_SECONDS = 1.0
BETWEEN_SECONDS = 7200.0  # interruptions, on average


def interrupted_run(folder, checkpoint_interval: int, num_interruptions: int = 20):
    """Writes the files of a run that is killed without notice; returns its times."""
    generator = random.Random(0)
    clock, saved = 0.0, 0

    def event(message: str) -> None:
        time = datetime.datetime(2026, 1, 1) + datetime.timedelta(seconds=clock)
        line = {"time": f"{time:%Y-%m-%dT%H:%M:%SZ}", "message": message}
        json_files.append_line(str(folder / layout.EVENTS), line)

    for start in range(num_interruptions + 1):
        lifetime = generator.expovariate(1 / BETWEEN_SECONDS)
        event(f"step {saved}: {journal.STARTS} v3-8, up to step 1000000")
        log = MetricsLog(str(folder), saved)
        death, step, first = clock + lifetime, saved, saved + 50
        clock += START_SECONDS
        while clock < death or start == num_interruptions:
            step, clock = step + 50, clock + 50 * STEP_SECONDS
            # The first execution compiles.
            speed = TOKENS_PER_STEP / STEP_SECONDS / (9 if step == first else 1)
            tokens = step * TOKENS_PER_STEP
            log.write(step, {"loss": 1, "tokens": tokens, "tokens_per_second": speed})
            if step % checkpoint_interval < 50:
                saved, clock = step, clock + SAVE_SECONDS
                if start == num_interruptions:
                    break
        log.close()
    event(f"step {saved}: done")
    events = json_files.read_lines(str(folder / layout.EVENTS), required_field="time")
    return goodput.measure(load(str(folder)), events), saved * STEP_SECONDS, clock


def test_twenty_preemptions_with_the_proposed_interval(tmp_path):
    (tmp_path / "first").mkdir()
    first, *_ = interrupted_run(tmp_path / "first", 50)
    interval = first.best_checkpoint_interval(SAVE_SECONDS)
    # sqrt(2 * 1 s * 2 h) = 120 s
    assert interval == pytest.approx(240, rel=0.2)
    shares = {}
    for name, steps in {"best": interval, "rare": 20 * interval, "often": 50}.items():
        (tmp_path / name).mkdir()
        measured, stayed, total = interrupted_run(tmp_path / name, steps)
        assert measured.training_seconds == pytest.approx(stayed, rel=1e-6)
        assert measured.total_seconds == pytest.approx(total, abs=1)
        assert measured.num_starts == 21
        shares[name] = measured.share
    assert shares["best"] >= 0.95
    assert shares["best"] > max(shares["rare"], shares["often"])


def test_a_run_without_a_step_has_none():
    assert goodput.measure([], []) is None
    start = {"time": "2026-01-01T00:00:00Z", "message": f"step 0: {journal.STARTS} CPU"}
    assert goodput.measure([], [start]) is None


def test_a_run_without_interruption_proposes_no_interval():
    start = {"time": "2026-01-01T00:00:00Z", "message": f"step 0: {journal.STARTS} CPU"}
    end = {"time": "2026-01-01T00:00:10Z", "message": "step 10: done"}
    line = {"step": 10, "tokens": 1000, "tokens_per_second": 200.0}
    measured = goodput.measure([line], [start, end])
    assert measured.share == pytest.approx(0.5)
    assert measured.seconds_per_step == pytest.approx(0.5)
    assert measured.best_checkpoint_interval(1.0) is None
