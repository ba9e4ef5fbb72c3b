"""Pages that several files of tests look at."""

import pytest

from tests.trainer.reporting import folders


@pytest.fixture(scope="session")
def one(tmp_path_factory):
    """The page of one run."""
    return folders.make_page(
        folders.write_run(tmp_path_factory.mktemp("one") / folders.NAME)
    )


@pytest.fixture(scope="session")
def three(tmp_path_factory):
    """The page of three runs that differ."""
    root = tmp_path_factory.mktemp("three")
    other = folders.a_manifest(vocabulary_size=9000)
    return folders.make_page(
        folders.write_run(root / "sweep_of_rates_low", rate=3e-4),
        folders.write_run(root / "sweep_of_rates_high"),
        folders.write_run(
            root / "sweep_of_rates_wide", tokens_per_step=2048, data=other
        ),
    )
