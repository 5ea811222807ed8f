"""What a compressed model measures: its size, its speed, and the epsilon of all stages."""

from __future__ import annotations

from dpbench.compression import saved
from dpbench.compression.callbacks import MagnitudePruning
from dpbench.compression.config import Settings
from dpbench.compression.cutting import sizes_of
from dpbench.compression.pruning import prunable
from dpbench.compression.task import CompressedTask
from dpbench.execution.contract import Context
from dpbench.records.schema import Metric, Privacy

_MIB = 2**20


def epsilon_metrics(settings: Settings, privacy: Privacy | None) -> list[Metric]:
    """Return epsilon of all stages by PLD and by RDP, and the first one's share of what was asked for."""
    if privacy is None or privacy.epsilon is None:
        return [Metric(name="epsilon", value=None, text="none", unit="", note="no clipping and no noise")]
    metrics = [Metric(name="epsilon", value=privacy.epsilon, unit="", kind="counted")]
    if privacy.epsilon_rdp is not None:
        metrics.append(Metric(name="epsilon_rdp", value=privacy.epsilon_rdp, unit="", kind="counted"))
    if settings.target_epsilon is not None:
        share = privacy.epsilon / (settings.epsilon or 1.0)
        metrics.append(Metric(name="spent_share", value=share, unit="x", kind="counted"))
    return metrics


def inference_metrics(settings: Settings, context: Context) -> list[Metric]:
    """Return latency and throughput of this run's shape, from the run that timed all shapes in turn."""
    names = {"latency": "ms", "throughput": "examples/s"}
    if settings.inference is None:
        return [Metric(name=n, value=None, unit=u, note="inference is not timed at this tier") for n, u in names.items()]
    record = context.parent("inference")
    shape = {"model": settings.shape[0], "layers": str(settings.shape[1])}
    return [m.model_copy(update={"labels": {}}) for m in record.metrics if m.labels == shape and m.name in names]


def size_metrics(settings: Settings, task: CompressedTask, pruning: MagnitudePruning | None) -> list[Metric]:
    """Return parameters, files and work of the encoder with its head: counted, not measured."""
    parameters, nonzero = sizes_of(task.model)
    masked = sum(w.numel() for w in prunable(task.encoder).values()) if pruning is not None else 0
    tokens = settings.inference.tokens if settings.inference is not None else 32
    values = {
        "parameters": (parameters / 1e6, "M"),
        "nonzero_parameters": (nonzero / 1e6, "M"),
        "file_size": (saved.file_bytes(task.encoder) / _MIB, "MiB"),
        "packed_size": (saved.packed_bytes(parameters, nonzero, masked) / _MIB, "MiB"),
        "flops": (saved.flops_of(task.encoder, tokens) / 1e9, "GFLOP"),
    }
    metrics = [Metric(name=name, value=value, unit=unit, kind="counted") for name, (value, unit) in values.items()]
    if pruning is not None:
        metrics.append(Metric(name="sparsity", value=100 * pruning.sparsities[-1], unit="%", kind="counted"))
    return metrics
