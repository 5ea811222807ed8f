"""GPT-2 small with OpenAI's weights."""

PLUGIN = {
    "kind": "model",
    "name": "openai_gpt2",
    "version": 1,
    "summary": "GPT-2 small, pre-trained: 12 layers, width 768",
    "family": "gpt2",
    "pretrained": True,
    "architecture": {
        "vocab_size": 50257,
        "n_positions": 1024,
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "eos_token_id": 50256,
        "pad_token_id": 50256,
    },
    "folder": "gpt2",
    "hub": {"repo": "openai-community/gpt2", "revision": "607a30d783dfa663caf39e06633721c8d4cfcd7e"},
    "licence": "MIT",
    "citation": "Radford et al., 2019",
}
