"""Peak bytes of live tensors: what is born, dies, and comes and goes by being resized."""

from __future__ import annotations

import torch

from dpbench.simulate.peak import PeakBytes


def test_the_peak_is_of_what_lives_together():
    with PeakBytes() as tensors:
        kept = torch.zeros(100)
        for _ in range(3):
            torch.zeros(1000)
    assert tensors.peak == 4400
    assert tensors.live == kept.nbytes


def test_storages_count_in_steps_of_the_quantum():
    with PeakBytes(512) as tensors:
        kept = torch.zeros(129)
    assert tensors.peak == 1024
    assert len(kept) == 129


def test_a_storage_that_comes_and_goes_counts_while_it_is_there():
    """As a sharded model's gathered weights: emptied after a layer, filled before it runs again."""
    with PeakBytes() as tensors:
        gathered, other = torch.zeros(1000), torch.zeros(10)
        gathered.untyped_storage().resize_(0)
        tensors.reset_peak()
        assert tensors.peak == 40
        other.add_(1)
        assert tensors.peak == 40
        gathered.untyped_storage().resize_(4000)
        other.add_(1)
        gathered.untyped_storage().resize_(0)
        other.add_(1)
        assert tensors.peak == 4040
        tensors.reset_peak()
        assert tensors.peak == 40
        del gathered
        other.add_(1)
        assert tensors.peak == 40


def test_peak_bytes_count_live_storage():
    with PeakBytes() as peak:
        a = torch.zeros(1000)
        b = a + 1
        view = b.view(10, 100)
        del a
        c = torch.zeros(500)
        del b, view, c
        torch.zeros(10)
    assert peak.peak == 8000
    with PeakBytes(quantum=512) as rounded:
        torch.zeros(1)
    assert rounded.peak == 512
