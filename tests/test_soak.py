"""Five minutes of a schedule that fires each minute, on a real server and worker, with the code of benchmarks/soak.py."""

from pathlib import Path

import pytest
from soak import soak

from flows.server import LOG

MINUTES = 5
LATE = 5
"""Seconds after its minute, at which a run has begun at the latest."""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_run_fires_on_its_minute_and_only_those_that_were_struck_do_not_complete(tmp_path: Path) -> None:
    told = soak(tmp_path, MINUTES)
    print(told.table(), told.sizes(), sep="\n")

    assert len(told.fired) == MINUTES
    minutes = [int(one.minute[-2:]) for one in told.fired]
    assert [(minutes[0] + at) % 60 for at in range(MINUTES)] == minutes, "none was left out"
    assert [one.running for one in told.fired if not -1 < one.running <= LATE] == []
    assert {one.struck: one.ended for one in told.fired} == {
        "": "COMPLETED",
        "hung": "CANCELLED",
        "killed": "CRASHED",
        "cancelled": "CANCELLED",
    }
    whole = [one for one in told.fired if not one.struck]
    assert {one.ended for one in whole} == {"COMPLETED"}
    assert len({one.digest for one in whole}) == 1 and whole[0].digest, "the same pairs every time"

    assert not told.left, "no process and no temporary file is left behind"
    assert told.database[-1] < 20e6 and told.server_log < 2 * LOG and told.worker_log < 200e3 and told.run_log < 100e3
