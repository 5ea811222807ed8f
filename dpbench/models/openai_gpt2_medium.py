"""GPT-2 medium with OpenAI's weights."""

PLUGIN = {
    "kind": "model",
    "name": "openai_gpt2_medium",
    "version": 1,
    "summary": "GPT-2 medium, pre-trained: 24 layers, width 1024",
    "family": "gpt2",
    "pretrained": True,
    "architecture": {
        "vocab_size": 50257,
        "n_positions": 1024,
        "n_embd": 1024,
        "n_layer": 24,
        "n_head": 16,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "eos_token_id": 50256,
        "pad_token_id": 50256,
    },
    "folder": "gpt2-medium",
    "hub": {"repo": "openai-community/gpt2-medium", "revision": "6dcaa7a952f72f9298047fd5137cd6e4f05f41da"},
    "licence": "MIT",
    "citation": "Radford et al., 2019",
}
