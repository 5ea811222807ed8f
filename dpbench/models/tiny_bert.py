"""A BERT of 2 layers with random weights, for smoke runs and tests."""

PLUGIN = {
    "kind": "model",
    "name": "tiny_bert",
    "version": 1,
    "summary": "tiny BERT: 2 layers, width 32, random weights",
    "family": "bert",
    "pretrained": False,
    "synthetic": True,
    "architecture": {
        "vocab_size": 512,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 128,
        "hidden_act": "gelu",
        "max_position_embeddings": 128,
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-12,
        "pad_token_id": 0,
    },
    "licence": "Apache-2.0",
}
