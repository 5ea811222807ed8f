"""OPT-2.7B with Meta's weights."""

PLUGIN = {
    "kind": "model",
    "name": "facebook_opt_2_7b",
    "version": 1,
    "summary": "OPT-2.7B, pre-trained: 32 layers, width 2560",
    "family": "opt",
    "pretrained": True,
    "architecture": {
        "vocab_size": 50272,
        "max_position_embeddings": 2048,
        "hidden_size": 2560,
        "word_embed_proj_dim": 2560,
        "ffn_dim": 10240,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "do_layer_norm_before": True,
        "activation_function": "relu",
        "bos_token_id": 2,
        "eos_token_id": 2,
        "pad_token_id": 1,
    },
    "folder": "opt-2.7b",
    "hub": {
        "repo": "facebook/opt-2.7b",
        "revision": None,
        "why": "none with the weights as one safetensors file is known; see dpbench/models/pretrained.py for a local folder",
    },
    "licence": "OPT-175B licence agreement: research, no commercial use",
    "citation": "Zhang et al., 2022, arXiv 2205.01068",
}
