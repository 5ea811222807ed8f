"""OPT-13B with Meta's weights."""

PLUGIN = {
    "kind": "model",
    "name": "facebook_opt_13b",
    "version": 1,
    "summary": "OPT-13B, pre-trained: 40 layers, width 5120",
    "family": "opt",
    "pretrained": True,
    "architecture": {
        "vocab_size": 50272,
        "max_position_embeddings": 2048,
        "hidden_size": 5120,
        "word_embed_proj_dim": 5120,
        "ffn_dim": 20480,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
        "do_layer_norm_before": True,
        "activation_function": "relu",
        "bos_token_id": 2,
        "eos_token_id": 2,
        "pad_token_id": 1,
    },
    "folder": "opt-13b",
    "hub": {
        "repo": "facebook/opt-13b",
        "revision": None,
        "why": "none with the weights as one safetensors file is known; see dpbench/models/pretrained.py for a local folder",
    },
    "licence": "OPT-175B licence agreement: research, no commercial use",
    "citation": "Zhang et al., 2022, arXiv 2205.01068",
}
