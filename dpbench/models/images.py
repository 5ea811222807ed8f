"""Image classifiers by name. A model is one file here with a `PLUGIN` of family `image` and
`build(channels, size, classes) -> nn.Module`, from [B, channels, size, size] in about -1 to 1 to [B, classes] logits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dpbench import plugins
from dpbench.errors import DpbenchError, unknown

if TYPE_CHECKING:
    from torch import nn


def image_model(name: str, image: dict[str, int], classes: int, seed: int = 0, meta: bool = False) -> nn.Module:
    """An image classifier with random weights that depend on `seed` alone; `meta`: without storage.

    Args:
        image: `channels`, `height`, `width`, as a dataset's plug-in states them.

    Raises:
        DpbenchError: no such model, not one of images, or images of a size that it does not take.
    """
    plugin = plugins.get("model", name)
    if plugin.extra["family"] != "image":
        known = [n for n, p in plugins.discover("model").items() if p.extra["family"] == "image"]
        raise unknown("image model", name, known)
    sizes = plugin.extra["architecture"]["image_sizes"]
    if image["height"] != image["width"] or image["width"] not in sizes:
        taken = ", ".join(f"{size} x {size}" for size in sizes)
        found = f"{image['height']} x {image['width']}"
        raise DpbenchError(f"model {name} takes images of {taken}, not {found}", "take another model")
    from dpbench.models.seeded import build

    make = plugin.load().build
    return build(lambda: make(image["channels"], image["width"], classes), seed, meta)
