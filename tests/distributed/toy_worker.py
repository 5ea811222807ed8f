"""A worker that does as it is told, without torch unless it is to meet the others."""

from __future__ import annotations

import datetime
import os
import time

from dpbench.distributed.launch import STORE, receive, say

RANK = int(os.environ["RANK"])


def meet():
    """An all-reduce that waits for a rank that has died."""
    import torch
    import torch.distributed as dist

    size, wait = int(os.environ["WORLD_SIZE"]), datetime.timedelta(seconds=60)
    try:  # the other may be gone before this one has met it
        dist.init_process_group("gloo", init_method=f"file://{os.environ[STORE]}", rank=RANK, world_size=size, timeout=wait)
        if RANK == 1:
            os._exit(7)
        dist.all_reduce(torch.ones(3))
    except RuntimeError as error:
        say({"failure": {"what": str(error), "hint": "", "out_of_memory": False, "lost": True}})
        os._exit(1)


request = receive()
print("what a library says is no message")
say({"pid": os.getpid(), "echo": request["echo"]})
for what in request["do"][RANK]:
    if what == "sleep":
        time.sleep(300)
    elif what == "die":
        os._exit(7)
    elif what == "kill":
        os.kill(os.getpid(), 9)
    elif what == "say why":
        say({"failure": {"what": "no room", "hint": "less", "out_of_memory": False, "lost": False}})
        os._exit(1)
    elif what == "lose":
        time.sleep(0.2)
        say({"failure": {"what": "connection closed", "hint": "", "out_of_memory": False, "lost": True}})
        os._exit(1)
    elif what == "meet":
        meet()
