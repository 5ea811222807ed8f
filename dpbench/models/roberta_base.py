"""RoBERTa-base."""

PLUGIN = {
    "kind": "model",
    "name": "roberta_base",
    "version": 1,
    "summary": "RoBERTa-base: 12 layers, width 768, 124.1 M parameters without its pooler",
    "family": "roberta",
    "pretrained": True,
    "architecture": {
        "vocab_size": 50265,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "hidden_act": "gelu",
        "max_position_embeddings": 514,
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,
        "pad_token_id": 1,
    },
    "folder": "roberta-base",
    "hub": {"repo": "FacebookAI/roberta-base", "revision": "e2da8e2f811d1448a5b465c236feacd80ffbac7b"},
    "licence": "MIT",
    "citation": "Liu et al., 2019, arXiv 1907.11692",
}
