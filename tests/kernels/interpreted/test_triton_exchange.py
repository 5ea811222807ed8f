"""The grid-wide exchange of the single pass under real concurrency: every program of the grid is a process of its own, all
of them share the tensors, and whichever is late keeps the others waiting."""

from __future__ import annotations

import multiprocessing
import time

import pytest
import torch
from gradients import of_linear
from guarded import with_fault
from kernel_oracles import norms_of, relative

from dpbench.kernels.linear import onchip, plan
from dpbench.kernels.linear import triton as ours
from dpbench.kernels.onchip import FUNCTIONS
from dpbench.privacy.clipping import abadi

LATE = 0.5  # seconds; a program without a barrier is through in a tenth of it
PATIENCE = 60


def one_program(rank, programs, late, tensors, tile, errors):
    """Run program `rank` of the whole grid in this process."""
    try:
        from triton.runtime import interpreter

        builder, set_index, set_dimensions = (
            interpreter.interpreter_builder,
            interpreter.interpreter_builder.set_grid_idx,
            interpreter.interpreter_builder.set_grid_dim,
        )
        builder.set_grid_idx = lambda *_: set_index(rank, 0, 0)
        builder.set_grid_dim = lambda *_: set_dimensions(programs, 1, 1)
        interpreter.GridExecutor._restore_args_dev = lambda *_: None  # the tensors are the caller's own memory already
        torch.set_num_threads(1)
        if rank == late:
            time.sleep(LATE)
        x, g, weight, bias, parts, arrived, norms = tensors
        ours._product(
            x, g, weight, bias, parts, arrived, norms, 2.0, 0.0, FUNCTIONS["abadi"], True, tile, (1,), onchip.SINGLE_PASS
        )
    except BaseException as error:
        errors.put(repr(error))
        raise


def whole_grid(ahead, late):
    """(norms, weight, bias) of the single pass over four tiles and three examples, and the oracle's."""
    torch.manual_seed(0)
    tile = plan.Tile(16, 16, 16, 4, 2, 0.5, ahead=ahead)
    x, g = torch.randn(3, 17, 30), torch.randn(3, 17, 20)
    g[1, 2, 3] = float("nan")
    nan = float("nan")
    outputs = [torch.full((20, 30), nan), torch.full((20,), nan), torch.full((3, 4), nan), torch.zeros(3, dtype=torch.int32)]
    tensors = [t.share_memory_() for t in (x, g, *outputs, torch.full((3,), nan))]
    context = multiprocessing.get_context("fork")
    errors = context.SimpleQueue()
    workers = [context.Process(target=one_program, args=(rank, 4, late, tensors, tile, errors)) for rank in range(4)]
    for worker in workers:
        worker.start()
    end = time.monotonic() + PATIENCE
    for worker in workers:
        worker.join(max(0.0, end - time.monotonic()))
    stuck = [worker for worker in workers if worker.is_alive()]
    for worker in stuck:
        worker.kill()
    assert not stuck, "programs wait for ever"
    assert errors.empty(), errors.get()
    gradients = dict(zip(("weight", "bias"), of_linear(x, g), strict=True))
    expected_norms = norms_of(gradients)
    good = torch.isfinite(expected_norms)
    factors = abadi.factor(expected_norms[good], 2.0, 0.0)
    sums = [torch.einsum("b,b...->...", factors, value[good]) for value in gradients.values()]
    return (tensors[6], tensors[2], tensors[3]), (expected_norms, *sums)


def hold(released, expected_norms):
    norms, weight, bias = released
    assert torch.isnan(norms).tolist() == [False, True, False]
    assert relative(norms[::2], expected_norms[0][::2]) < 1e-6
    assert relative(weight, expected_norms[1]) < 1e-5
    assert relative(bias, expected_norms[2]) < 1e-5


@pytest.mark.parametrize("ahead", [False, True], ids=["waits", "ahead"])
@pytest.mark.parametrize("late", [0, 3])
def test_every_program_sees_every_norm(ahead, late):
    hold(*whole_grid(ahead, late))


@pytest.mark.parametrize("ahead", [False, True], ids=["waits", "ahead"])
def test_a_missing_barrier_is_caught(ahead, monkeypatch, tmp_path):
    change = ("wait(arrived + example - 1, programs)", "pass") if ahead else ("wait(arrived + example, programs)", "pass")
    monkeypatch.setattr(ours, "onchip", with_fault(onchip.__file__, change, folder=tmp_path))
    with pytest.raises(AssertionError):
        hold(*whole_grid(ahead, 3))
