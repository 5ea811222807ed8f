"""RoBERTa-large."""

PLUGIN = {
    "kind": "model",
    "name": "roberta_large",
    "version": 1,
    "summary": "RoBERTa-large: 24 layers, width 1024, 354.3 M parameters without its pooler",
    "family": "roberta",
    "pretrained": True,
    "architecture": {
        "vocab_size": 50265,
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "hidden_act": "gelu",
        "max_position_embeddings": 514,
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,
        "pad_token_id": 1,
    },
    "folder": "roberta-large",
    "hub": {"repo": "FacebookAI/roberta-large", "revision": "722cf37b1afa9454edce342e7895e588b6ff1d59"},
    "licence": "MIT",
    "citation": "Liu et al., 2019, arXiv 1907.11692",
}
