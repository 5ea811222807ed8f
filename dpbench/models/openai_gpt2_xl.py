"""GPT-2 XL with OpenAI's weights."""

PLUGIN = {
    "kind": "model",
    "name": "openai_gpt2_xl",
    "version": 1,
    "summary": "GPT-2 XL, pre-trained: 48 layers, width 1600",
    "family": "gpt2",
    "pretrained": True,
    "architecture": {
        "vocab_size": 50257,
        "n_positions": 1024,
        "n_embd": 1600,
        "n_layer": 48,
        "n_head": 25,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "eos_token_id": 50256,
        "pad_token_id": 50256,
    },
    "folder": "gpt2-xl",
    "hub": {"repo": "openai-community/gpt2-xl", "revision": "15ea56dee5df4983c59b2538573817e1667135e2"},
    "licence": "MIT",
    "citation": "Radford et al., 2019",
}
