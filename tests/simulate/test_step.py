"""A simulated step against one that is run, and its counts against counts by hand."""

from __future__ import annotations

import numpy as np
import pytest
from step_settings import setting

from dpbench import plugins
from dpbench.errors import DpbenchError
from dpbench.measure import memory, throughput
from dpbench.simulate.cost import Work
from dpbench.simulate.step import step

ENGINES = ["nonprivate", "fused", "bookkeeping", "ghost", "vmap", "opacus", "opacus_ghost", "opake", "fastdp"]


def measured(step_setting):
    timing = throughput.Settings(
        size=step_setting.size,
        tokens=step_setting.tokens,
        batch_size=step_setting.batch_size,
        micro_batch=step_setting.micro_batch,
        methods=[step_setting.engine],
    )
    ids = np.random.default_rng(0).integers(0, 512, (step_setting.batch_size, step_setting.tokens))
    return max(memory.measure(timing, step_setting.engine, ids, 0)["tensors"])


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("size", ["tiny", "llama_tiny", "opt_tiny"])
def test_on_the_cpu_simulated_bytes_are_the_measured_bytes(engine, size):
    if plugins.get("engine", engine).missing:
        pytest.skip("the peer is not installed")
    if (engine, size) == ("fastdp", "llama_tiny"):
        pytest.skip("fastDP has no rule for Llama's norm, and says so")
    step_setting = setting(engine, size=size, tokens=33, batch_size=3, micro_batch=2)
    assert step(step_setting).peak == pytest.approx(measured(step_setting), rel=0.01)


def test_materialising_is_seen():
    """A planted difference: per-example gradients of B examples are in the peak, those of the single pass are not."""
    narrow = {"tokens": 8, "batch_size": 16, "device": "cuda"}
    parameters = 4 * sum(p.numel() for p in _model().parameters())
    plain, fused, vmap = (step(setting(name, **narrow)) for name in ("nonprivate", "fused", "vmap"))
    assert vmap.peak - plain.peak > 10 * parameters
    assert fused.peak - plain.peak < parameters


def _model():
    from dpbench.models import registry as models

    return models.language_model("tiny", meta=True)


def test_attention_keeps_no_scores_on_a_gpu():
    """Twice the tokens are at most twice the bytes: T x T scores of 2 heads in fp32 would be four times theirs."""
    one, two = (step(setting("nonprivate", tokens=t, batch_size=8, device="cuda")).passes for t in (1024, 2048))
    assert two < 2 * one


def test_products_of_a_plain_step_are_counted():
    """Forward, input gradient and weight gradient of every linear layer, 2 FLOPs a multiply-add; attention apart."""
    batch, tokens, width, vocabulary, layers = 4, 64, 32, 512, 2
    linear = layers * 12 * width * width + width * vocabulary
    attention = layers * (2 + 5) * batch * tokens * tokens * width
    flops = sum(step(setting("nonprivate", device="cuda")).work.flops)
    assert flops == 6 * batch * tokens * linear + attention


def test_two_backward_passes_cost_what_they_cost():
    """Ghost clipping goes back twice: one more input gradient of every layer at least."""
    plain, ghost = (sum(step(setting(name, device="cuda")).work.flops) for name in ("nonprivate", "ghost"))
    batch, tokens, width, layers = 4, 64, 32, 2
    assert ghost - plain > 2 * batch * tokens * layers * 12 * width * width


def test_an_optimizer_step_on_a_gpu_holds_a_copy_of_each_weight():
    estimated_step = step(setting("nonprivate", device="cuda", tokens=2, batch_size=1))
    parameters = 4 * sum(p.numel() for p in _model().parameters())
    assert estimated_step.live >= 3 * parameters  # weights and two moments
    assert estimated_step.release >= 5 * parameters  # and gradients, and a root


def test_a_roofline_takes_the_slower_side():
    work = Work()
    work.add(flops=100, moved=10, half=True)
    work.add(flops=100, moved=1000, half=True)
    work.add(flops=100, moved=10, half=False)
    assert work.seconds(bandwidth=100, half=100, single=10) == pytest.approx(1 + 10 + 10)


def test_what_cannot_be_simulated_says_so(monkeypatch):
    from dpbench.methods.engines.fused import Engine

    def read(*_):
        raise NotImplementedError("aten::something")

    monkeypatch.setattr(Engine, "_clip", read)
    with pytest.raises(DpbenchError, match="engine fused cannot be simulated"):
        step(setting("fused"))
