"""The command line: every verb, and one message with exit code 2 for what a user can put right."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpbench import cli
from dpbench.cli import main, parser

REPOSITORY = Path(__file__).resolve().parents[2]


def test_the_verbs_are_these():
    """Adding one is a decision."""
    (verbs,) = [a for a in parser()._actions if a.dest == "verb"]
    known = [
        "bench",
        "bundle",
        "check",
        "claims",
        "doctor",
        "long",
        "new",
        "plot",
        "plugins",
        "record",
        "report",
        "run",
        "schema",
        "show",
        "simulate",
        "table",
        "test-plugin",
    ]
    assert sorted(verbs.choices) == known


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["run", "/no/such.json", "--out", "x"], "/no/such.json: no such file"),
        (["check", "--tier", "huge"], "unknown tier 'huge'"),
        (["check", "--tier", "smoke", "--tables", "flashdp/batch"], "did you mean 'flashdp/batch_size'"),
        (["record"], "needs --tier or --merge"),
        (["record", "--merge", "/no/such.tar.gz"], "cannot be read as an archive"),
        (["table", "flashdp/x", "--tier", "smoke", "--out", "x"], "unknown table"),
        (["claims", "--tables", "/no/such.json", "--out", "x"], "no such file"),
    ],
)
def test_one_clear_message_and_exit_code_two(words, says, capsys):
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert says in error
    assert "Traceback" not in error


@pytest.mark.parametrize("tier", ["smoke", "laptop", "overnight", "gpu", "paper"])
def test_every_tier_stands(tier, capsys, coarse_grid):
    """Models on the meta device, engines attached, schemas and budgets read: no tier exists in YAML only.

    A coarser grid overstates epsilon: a budget that it reaches is reached.
    """
    code = main(["check", "--tier", tier])
    out = capsys.readouterr().out
    assert code == 0, out
    assert "runs OK, 0 failed" in out


def test_a_run_that_cannot_stand_is_found(capsys, monkeypatch):
    from dpbench.errors import DpbenchError
    from dpbench.jobs import throughput

    def broken(*_):
        raise DpbenchError("engine x leaves y unprotected")

    monkeypatch.setattr(throughput, "check", broken)
    assert main(["check", "--tier", "smoke", "--tables", "flashdp/batch_size"]) == 1
    assert "FAILED: engine x leaves y unprotected" in capsys.readouterr().out


def test_seeds_are_checked_once_and_counted_each(capsys, monkeypatch):
    from dpbench.jobs import convergence

    asked = []
    monkeypatch.setattr(convergence, "check", lambda settings, _: asked.append(settings) or [])
    assert main(["check", "--tier", "overnight", "--tables", "automatic/convergence"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(asked) == len({str(settings) for settings in asked}) > 1
    assert len([line for line in lines if line.endswith(" ok: ")]) > len(asked)


def test_doctor_tells_what_is_there(capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    for word in ("torch", "sst2", "minilm", "fused", "laptop"):
        assert word in out


def test_interruption_is_said(monkeypatch, capsys):
    from dpbench.cli import checking

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(checking, "check", interrupt)
    assert main(["check", "--tier", "smoke"]) == 130
    assert "finished records are kept" in capsys.readouterr().err


def test_simulate_prints_engines_and_devices_as_simulated(capsys):
    assert (
        main(["simulate", "tiny", "--tokens", "16", "--engines", "nonprivate", "fused", "--devices", "a100_80", "titan_rtx_24"])
        == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "simulated, not measured"
    assert [line.split()[:2] for line in lines[2:6]] == [
        [e, d] for e in ("nonprivate", "fused") for d in ("a100_80", "titan_rtx_24")
    ]
    peak, on_device, *ratios = lines[2].split()[3:]
    assert int(on_device) > int(peak) + 600
    assert ratios == ["1.000", "1.000"]
    assert "float16 rates" in lines[-1]
    assert main(["simulate", "tin"]) == 2
    assert "did you mean 'tiny'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "option"),
    [
        *((["run", "{}", "--out", "x", "--threads", value], "--threads") for value in ("0", "-1", "100000", "1.5", "9" * 5000)),
        *((["record", "--tier", "smoke", "--minutes", value], "--minutes") for value in ("nan", "inf", "-1", "0", "1e9", "x")),
        *((["table", "dpzero/cost", "--out", "x", "--seeds", "0", value], "--seeds") for value in ("-1", str(2**70), "nan")),
        (["record", "--tier", "smoke", "--threads", "0"], "--threads"),
        (["bench", "kernels", "--rounds", "0"], "--rounds"),
        (["simulate", "small", "--batch-size", "-8"], "--batch-size"),
        (["run", "{}", "--out", "x", "--owner", "0"], "--owner"),
    ],
)
def test_a_number_that_makes_no_sense_is_refused_by_name(words, option, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(words)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert f"argument {option}" in line
    assert len(line) < 200


def test_a_full_disk_is_one_line_wherever_it_is_met(monkeypatch, capsys):
    def full(_):
        raise RuntimeError("failed writing") from OSError(28, "No space left on device")

    monkeypatch.setattr(cli, "_doctor", full)
    assert cli.main(["doctor"]) == 2
    assert ": the disk is full" in capsys.readouterr().err


def test_other_errors_are_not_hidden(monkeypatch):
    def broken(_):
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr(cli, "_doctor", broken)
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        cli.main(["doctor"])
