"""The command line: every verb, and one message with exit code 2 for what a user can put right."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from dpbench.cli import command, doctor, main
from dpbench.plugins import identity

REPOSITORY = Path(__file__).resolve().parents[2]


def test_the_verbs_are_these():
    """Adding one is a decision."""
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
    assert sorted(command.commands) == known


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
    assert main(words) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert f"Invalid value for '{option}'" in line
    assert "(got " in line
    assert len(line) < 200


def test_a_full_disk_is_one_line_wherever_it_is_met(monkeypatch, capsys):
    def full():
        raise RuntimeError("failed writing") from OSError(28, "No space left on device")

    monkeypatch.setattr(doctor, "report", full)
    assert main(["doctor"]) == 2
    assert ": the disk is full" in capsys.readouterr().err


def test_other_errors_are_not_hidden(monkeypatch):
    def broken():
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr(doctor, "report", broken)
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        main(["doctor"])


@pytest.mark.parametrize("verb", sorted(command.commands))
def test_help_of_a_verb_has_examples_that_parse(verb, capsys):
    assert main([verb, "--help"]) == 0
    assert "Examples" in capsys.readouterr().out
    for line in command.commands[verb].epilog.splitlines():
        if line.startswith("  dpbench "):
            name, *words = shlex.split(line)[1:]
            assert name == verb
            command.commands[verb].make_context(verb, words)


@pytest.mark.parametrize(
    ("words", "lists"),
    [
        (["--tables", "a", "b", "--plots", "--out", "c"], {"tables": ["a", "b"], "plots": []}),
        (["--tables", "a", "--tables", "b", "c", "--out", "c"], {"tables": ["a", "b", "c"], "plots": []}),
        (["--out", "c", "--plots=a", "--tables"], {"tables": [], "plots": ["a"]}),
    ],
)
def test_a_list_takes_all_words_up_to_the_next_option(words, lists):
    values = command.commands["report"].make_context("report", words).params
    assert {name: [str(path) for path in values[name]] for name in lists} == lists


@pytest.mark.parametrize("words", [["check", "--tier", "smoke", "--tables"], ["claims", "--tables", "--out", "x"]])
def test_a_list_without_values_is_refused(words, capsys):
    assert main(words) == 2
    assert "--tables has no value" in capsys.readouterr().err


def test_help_is_no_value_of_a_list(capsys):
    assert main(["check", "--tier", "smoke", "--tables", "flashdp/batch_size", "-h"]) == 0
    assert "Usage: dpbench check" in capsys.readouterr().out


def test_a_lock_without_names_is_of_all_that_changed(monkeypatch, capsys):
    monkeypatch.setattr(identity, "lock", lambda names, why: [*names, why])
    assert main(["plugins", "--lock", "--why", "faster"]) == 0
    assert capsys.readouterr().out == "locked faster\n"
    assert main(["plugins", "--lock", "engine:ghost", "job:bench"]) == 0
    assert capsys.readouterr().out.startswith("locked engine:ghost\nlocked job:bench\n")


def test_a_report_needs_claims_or_recorded_results(capsys):
    assert main(["report", "--out", "x.html"]) == 2
    assert "--claims or --recorded" in capsys.readouterr().err
