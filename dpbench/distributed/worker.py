"""One process of a group that `dpbench.distributed.launch` has started."""

from __future__ import annotations

import datetime
import os
import traceback
from collections.abc import Callable

import torch
import torch.distributed as dist

from dpbench.distributed.launch import STORE, Message, receive, say
from dpbench.errors import DpbenchError, is_out_of_memory


def serve(work: Callable[[Message, int], None]) -> None:
    """Run a worker: read one request, join the group, call `work(request, rank)` and leave the group, or report the failure.

    It uses the request's `device`, `threads` and `patience`, which is the number of seconds that a collective may take.
    """
    request = receive()
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    try:
        _join(request["device"], rank, size, request["patience"])
        torch.set_num_threads(request["threads"])
        work(request, rank)
        _leave()
    except BaseException as error:
        traceback.print_exc()
        say({"failure": _why(error)})
        os._exit(1)  # without the usual cleanup, which waits for the other ranks


def _why(error: BaseException) -> Message:
    text = str(error) or type(error).__name__
    if isinstance(error, DpbenchError):
        what, hint, lost = error.what, error.hint, False
    else:
        what, hint = f"{type(error).__name__}: {text.splitlines()[0]}", ""
        lost = any(word in text.lower() for word in ("connection", "timed out", "timeout", "peer"))
    return {"what": what, "hint": hint, "out_of_memory": is_out_of_memory(error), "lost": lost}


def _join(kind: str, rank: int, size: int, patience: float) -> None:
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if kind == "cuda" else None
    if device is not None:
        torch.cuda.set_device(device)
    dist.init_process_group(
        "gloo" if device is None else "nccl",
        device_id=device,
        init_method=f"file://{os.environ[STORE]}",
        rank=rank,
        world_size=size,
        timeout=datetime.timedelta(seconds=patience),
    )


def _leave() -> None:
    dist.barrier()
    dist.destroy_process_group()
