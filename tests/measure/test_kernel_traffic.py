"""Counts of one linear layer, against counts by hand."""

from __future__ import annotations

import pytest

from dpbench.measure import kernel_traffic as job

B, T, I, O = 8, 256, 64, 128  # noqa: E741  the letters of every docstring
SETTINGS = job.Settings(inputs=I, outputs=O, tokens=T, batch_size=B, engines=["nonprivate"], dtype="float32")
PRODUCT = 2 * B * T * I * O


def flops(engine):
    return sum(job.count(SETTINGS, engine).flops)


def test_plain_training_is_three_products():
    assert flops("nonprivate") == 3 * PRODUCT


def test_what_each_design_multiplies():
    """Under Opacus autograd still forms the batch's own weight gradient, which nobody uses; two backward passes form the input's
    gradient twice, and norms come on top."""
    assert flops("opacus") == pytest.approx(4 * PRODUCT, rel=0.01)
    assert flops("ghost") > 4 * PRODUCT
    assert flops("opacus_ghost") > 4 * PRODUCT
    assert 3 * PRODUCT <= flops("bookkeeping") < flops("ghost")
    assert 3 * PRODUCT <= flops("fused") < flops("ghost")


def test_per_example_gradients_are_seen_in_the_bytes():
    """B gradients of O x I in fp32 are written, read for the norm and read for the sum."""
    plain, opacus = (sum(job.count(SETTINGS, e).bytes) for e in ("nonprivate", "opacus"))
    assert opacus - plain > 3 * 4 * B * O * I


def test_a_missing_peer_leaves_its_reason(monkeypatch):
    peer_settings = job.Settings(inputs=4, outputs=4, tokens=4, engines=["nonprivate", "opacus"])
    monkeypatch.setattr(job, "split_missing", lambda names: (["nonprivate"], {"opacus": "skipped: x"}))
    outcome = job.run(peer_settings, _context())
    assert {m.name for m in outcome.metrics if m.labels["engine"] == "opacus" and m.note == "skipped: x"} == set(job.UNITS)


def _context():
    from types import SimpleNamespace

    return SimpleNamespace(report=lambda *_: None, steps=None)


def test_counts_grow_with_the_batch():
    """Of plain training; an engine of ours may take another way with more examples."""
    twice = SETTINGS.model_copy(update={"batch_size": 2 * B})
    assert sum(job.count(twice, "nonprivate").flops) == 2 * flops("nonprivate")
