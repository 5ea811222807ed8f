"""GPT-2 large with OpenAI's weights."""

PLUGIN = {
    "kind": "model",
    "name": "openai_gpt2_large",
    "version": 1,
    "summary": "GPT-2 large, pre-trained: 36 layers, width 1280",
    "family": "gpt2",
    "pretrained": True,
    "architecture": {
        "vocab_size": 50257,
        "n_positions": 1024,
        "n_embd": 1280,
        "n_layer": 36,
        "n_head": 20,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "eos_token_id": 50256,
        "pad_token_id": 50256,
    },
    "folder": "gpt2-large",
    "hub": {"repo": "openai-community/gpt2-large", "revision": "32b71b12589c2f8d625668d2335a01cac3249519"},
    "licence": "MIT",
    "citation": "Radford et al., 2019",
}
