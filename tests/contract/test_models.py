"""Every model card, by discovery: the architecture that it declares can be built."""

from __future__ import annotations

import pytest

from dpbench import plugins
from dpbench.models import registry


def cards(key: str) -> list[str]:
    return [name for name, plugin in plugins.discover("model").items() if plugin.is_card and key in plugin.extra]


@pytest.mark.parametrize("name", cards("architecture"))
def test_a_card_with_an_architecture_is_built_on_meta(name):
    source = registry.resolve(name, "scratch")
    if plugins.get("model", name).extra["family"] in ("bert", "roberta"):
        model = registry.encoder(name, source, meta=True)
    else:
        model = registry.pretrained_language_model(name, source, meta=True)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert model.context > 0


@pytest.mark.parametrize("name", cards("sizes"))
def test_every_size_of_a_card_is_built_on_meta(name):
    for size in plugins.get("model", name).extra["sizes"]:
        model = registry.language_model(size, meta=True, layers=1)
        assert model.vocabulary == registry.language_model_size(size)["vocabulary"]
        assert registry.language_model_family(size) == name
