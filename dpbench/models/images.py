"""Image classifiers and frozen image features by name.

A classifier is one file here with a `PLUGIN` of family `image` and `build(channels, size, classes) -> nn.Module`, from
[B, channels, size, size] in about -1 to 1 to [B, classes] logits. Frozen features are one file with a `PLUGIN` of family
`image_features`, `build(channels, size) -> nn.Module` and `shape(channels, size)` of its output.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dpbench import plugins
from dpbench.errors import DpbenchError, unknown

if TYPE_CHECKING:
    from torch import nn

    from dpbench.plugins import Plugin


def image_model(name: str, image: dict[str, int], classes: int, seed: int = 0, meta: bool = False) -> nn.Module:
    """Build an image classifier with random weights that depend only on `seed`.

    Args:
        image: `channels`, `height`, `width` of a dataset's plug-in.
        meta: whether to build it without storage.

    Raises:
        DpbenchError: there is no such model, it is not one for images, or does not take images of that size.
    """
    plugin = _fitting(name, "image", image)
    from dpbench.models.seeded import build

    make = plugin.load().build
    return build(lambda: make(image["channels"], image["width"], classes), seed, meta)


def image_features(name: str, image: dict[str, int]) -> nn.Module:
    """Build a frozen model of features, without weights: [B, C, H, W] in about -1 to 1 -> [B, C', h, w], each example separately.

    Raises:
        DpbenchError: there is no such model, it is not one of image features, or does not take images of that size.
    """
    module = _fitting(name, "image_features", image).load()
    features: nn.Module = module.build(image["channels"], image["width"])
    return features


def image_features_shape(name: str, image: dict[str, int]) -> dict[str, int]:
    """Return channels, height and width of the output of `image_features`; raises the same errors."""
    shape: dict[str, int] = _fitting(name, "image_features", image).load().shape(image["channels"], image["width"])
    return shape


def _fitting(name: str, family: str, image: dict[str, int]) -> Plugin:
    """Return the plug-in; raise unless it is of the family and takes images of that size."""
    plugin = plugins.get("model", name)
    if plugin.extra["family"] != family:
        known = [n for n, p in plugins.discover("model").items() if p.extra["family"] == family]
        raise unknown(f"{family.replace('_', ' ')} model", name, known)
    sizes = plugin.extra["architecture"]["image_sizes"]
    if image["height"] != image["width"] or image["width"] not in sizes:
        accepted_sizes = ", ".join(f"{size} x {size}" for size in sizes)
        size_of_data = f"{image['height']} x {image['width']}"
        raise DpbenchError(f"model {name} takes images of {accepted_sizes}, not {size_of_data}", "take another model")
    return plugin
