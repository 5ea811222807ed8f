"""A compressed classifier on disk: an encoder that transformers loads, and a head beside it; sizes. Imports torch."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dpbench.errors import DpbenchError
from dpbench.models.wrappers import Encoder

ENCODER, HEAD = "encoder", "head.safetensors"
OF_ENCODER = [f"{ENCODER}/config.json", f"{ENCODER}/model.safetensors"]
FILES = [*OF_ENCODER, HEAD]
"""What `save` leaves, for a record's artefacts."""


@contextmanager
def _no_bars() -> Iterator[None]:
    """Switch off the progress bar that transformers draws for each file that it reads or writes."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def save_encoder(encoder: Encoder, folder: Path) -> None:
    """Write an encoder by save_pretrained of `transformers`; masks are folded in, as pruned weights are zero."""
    with _no_bars():
        encoder.model.save_pretrained(folder)


def save(encoder: Encoder, head: dict[str, Tensor], folder: Path) -> list[str]:
    """Write an encoder and the other tensors of its classifier; return the files."""
    save_encoder(encoder, folder / ENCODER)
    save_file({name: value.detach().cpu().contiguous() for name, value in head.items()}, folder / HEAD)
    return list(FILES)


def load_encoder(folder: Path) -> Encoder:
    """Return an encoder that `save_encoder` wrote, in fp32 and without dropout, as `dpbench.models.encoder` gives them.

    Raises:
        DpbenchError: not there, or damaged.
    """
    from transformers import AutoModel

    try:
        options = {"attn_implementation": "sdpa", "dtype": torch.float32, "local_files_only": True}
        with _no_bars():
            model = AutoModel.from_pretrained(folder, add_pooling_layer=False, **options)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise DpbenchError(f"{folder}: no encoder to load ({error})", "run again what should have left it") from error
    return Encoder(model)


def load_head(folder: Path) -> dict[str, Tensor]:
    """Return the other tensors that `save` wrote."""
    try:
        return load_file(folder / HEAD)
    except (OSError, SafetensorError) as error:
        raise DpbenchError(f"{folder / HEAD}: not readable", "run again what should have left it") from error


def file_bytes(encoder: Encoder) -> int:
    """Size of the weights' file, as saved."""
    with tempfile.TemporaryDirectory() as folder:
        save_encoder(encoder, Path(folder))
        return (Path(folder) / "model.safetensors").stat().st_size


def sizes_of(model: nn.Module) -> tuple[int, int]:
    """Return a model's number of parameters, and of those that are not zero."""
    tensors: list[Tensor] = [p.detach() for p in model.parameters()]
    return sum(t.numel() for t in tensors), sum(int(t.count_nonzero()) for t in tensors)


def packed_bytes(parameters: int, nonzero: int, masked_of: int) -> int:
    """Return bytes of sparse storage: fp32 weights that are not zero, and one bit for each of the `masked_of` that might be."""
    return 4 * (nonzero if masked_of else parameters) + masked_of // 8


def flops_of(encoder: nn.Module, tokens: int) -> int:
    """Floating-point operations of all matrix products of one example's forward pass, two a multiply and add; zeros count."""
    device = next(encoder.parameters()).device
    ids = torch.ones(1, tokens, dtype=torch.long, device=device)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        encoder(ids, torch.ones_like(ids))
    return int(counter.get_total_flops())
