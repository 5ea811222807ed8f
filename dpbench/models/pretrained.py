"""Language models with published weights: GPT-2, and OPT, whose weights may stay in half precision.

OPT is published as pickled, often split weights without a `tokenizer.json`. A local folder (`DPBENCH_MODELS/opt-1.3b`) is written
once by transformers: `OPTForCausalLM.from_pretrained(repo, dtype="auto").save_pretrained(folder, max_shard_size="100GB")` and
`AutoTokenizer.from_pretrained(repo).save_pretrained(folder)`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dpbench import plugins
from dpbench.errors import DpbenchError
from dpbench.models import checkpoints
from dpbench.models.language import causal_model

if TYPE_CHECKING:
    import torch

    from dpbench.models.wrappers import LanguageModel
    from dpbench.spec.sources import Source

_PREFIXES = {"gpt2": ("transformer.",), "opt": ("model.", "decoder.")}
"""Family -> beginnings of names in checkpoints."""
_POSITIONS = {"embed_positions.weight": "embed_positions.table.weight"}
"""The name of OPT's positions in a checkpoint -> in a model that engines support."""


def pretrained_language_model(
    name: str, source: Source, seed: int = 0, meta: bool = False, dtype: torch.dtype | None = None, tied: bool = False
) -> LanguageModel:
    """Build a GPT-2 or OPT with its published weights, without dropout.

    The head starts as a copy of the embedding and is a separate tensor, as in private-transformers, unless `tied`.

    Args:
        source: the source from `resolve`; kind `scratch` gives random weights that depend on `seed`.
        meta: whether to build on the meta device, without reading any file.
        dtype: the type of the weights; None means fp32. OPT's weights are read directly in this type.
        tied: whether the head is the embedding, as it was published.

    Raises:
        DpbenchError: the model is no language model with weights; the weights are gone, changed, damaged or of another
            architecture.
    """
    from dpbench.models.seeded import build
    from dpbench.models.stages import body_of
    from dpbench.models.wrappers import LanguageModel

    plugin = plugins.get("model", name)
    family = plugin.extra["family"]
    if family not in _PREFIXES or "architecture" not in plugin.extra:
        raise DpbenchError(f"model {name} is no language model with published weights", "name a size instead")
    published = source.kind != "scratch" and not meta
    replaced = published and family == "opt"  # no random weights that the published ones would replace at once
    model = LanguageModel(build(lambda: causal_model(family, plugin.extra["architecture"]), seed, meta or replaced))
    transformer: Any = model.model
    if published:
        renamed = _POSITIONS if family == "opt" else None
        read_as = dtype if replaced else None
        checkpoints.load(body_of(model), plugin, source, _PREFIXES[family], renamed, read_as, assign=replaced)
        embedding = transformer.get_input_embeddings().weight.detach().clone()
        transformer.lm_head.load_state_dict({"weight": embedding}, assign=replaced)
    if tied:
        transformer.lm_head.weight = transformer.get_input_embeddings().weight
    return model if dtype is None else model.to(dtype)
