"""BERT-base, uncased."""

PLUGIN = {
    "kind": "model",
    "name": "bert_base",
    "version": 1,
    "summary": "BERT-base: 12 layers, width 768, 108.9 M parameters without its pooler",
    "family": "bert",
    "pretrained": True,
    "architecture": {
        "vocab_size": 30522,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "hidden_act": "gelu",
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "pad_token_id": 0,
    },
    "folder": "bert-base-uncased",
    "hub": {"repo": "google-bert/bert-base-uncased", "revision": "86b5e0934494bd15c9632b12f734a8a67f723594"},
    "licence": "Apache-2.0",
    "citation": "Devlin et al., NAACL 2019",
}
