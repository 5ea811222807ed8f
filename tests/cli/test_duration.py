"""How long a tier takes is added up from committed records, and from plans only where there is none."""

from __future__ import annotations

import pytest

from dpbench.cli import main
from dpbench.cli.duration import duration
from dpbench.spec.expand import Run
from dpbench.spec.models import Resources


def run(name: str, **resources) -> Run:
    return Run(id=name, key=name, config={}, resources=Resources(**{"minutes": 10, "mem_mb": 100} | resources), sources={})


def test_seconds_of_records_come_before_plans():
    estimate = duration([run("a", threads=1), run("b", threads=1)], {"a": 60.0}, cores=1)
    assert (estimate.minutes, estimate.recorded, estimate.planned) == (11.0, 1, 1)


@pytest.mark.parametrize(("threads", "minutes"), [(1, 1.0), (2, 2.0), (8, 4.0), ("all", 4.0)])
def test_a_run_holds_its_planned_cores_up_to_those_there_are(threads, minutes):
    assert duration([run("a", threads=threads)], {"a": 240.0}, cores=4).minutes == minutes


def test_a_run_of_a_gpu_goes_by_its_plan_alone():
    estimate = duration([run("a", threads=1, gpu=1)], {"a": 6000.0}, cores=4)
    assert (estimate.minutes, estimate.planned) == (10.0, 1)


def test_check_adds_up_each_paper(capsys):
    assert main(["check", "--tier", "smoke", "--tables", "automatic/convergence", "groupwise/epochs_sst2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" ")[0] for line in lines[-3:]] == ["automatic:", "groupwise:", "smoke:"]
    assert all(" minutes on " in line for line in lines[-3:])
