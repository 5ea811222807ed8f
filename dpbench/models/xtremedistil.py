"""XtremeDistil-l6-h384: a small BERT, distilled on public text for no task in particular."""

PLUGIN = {
    "kind": "model",
    "name": "xtremedistil",
    "version": 1,
    "summary": "XtremeDistil-l6-h384: BERT, 6 layers, width 384, 22.6 M parameters",
    "family": "bert",
    "pretrained": True,
    "architecture": {
        "vocab_size": 30522,
        "hidden_size": 384,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "intermediate_size": 1536,
        "hidden_act": "gelu",
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "pad_token_id": 0,
    },
    "folder": "xtremedistil-l6-h384-uncased",
    "hub": {
        "repo": "microsoft/xtremedistil-l6-h384-uncased",
        "revision": None,
        "why": "put its files, weights as safetensors, into the model folder",
    },
    "licence": "MIT",
    "citation": "Mukherjee, Awadallah and Gao, 2021, arXiv 2106.04563",
}
