"""Models by name: the one place to import from. Importing it, `resolve` and `where` never import torch."""

from dpbench.models.encoders import encoder
from dpbench.models.images import image_features, image_features_shape, image_model
from dpbench.models.language import (
    language_model,
    language_model_family,
    language_model_losses,
    language_model_size,
)
from dpbench.models.pretrained import pretrained_language_model
from dpbench.models.sources import KINDS, resolve, where
from dpbench.models.text import TextTokenizer, published_coding, text_tokenizer

__all__ = [
    "KINDS",
    "TextTokenizer",
    "encoder",
    "image_features",
    "image_features_shape",
    "image_model",
    "language_model",
    "language_model_family",
    "language_model_losses",
    "language_model_size",
    "pretrained_language_model",
    "published_coding",
    "resolve",
    "text_tokenizer",
    "where",
]
