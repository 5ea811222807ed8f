"""Llama (first generation), trained from scratch, in two published sizes and a small one."""

PLUGIN = {
    "kind": "model",
    "name": "llama",
    "version": 1,
    "summary": "Llama family from scratch: llama_tiny, llama_7b, llama_13b",
    "family": "llama",
    "pretrained": False,
    "synthetic": False,
    "sizes": {
        "llama_tiny": {"layers": 2, "width": 32, "hidden": 88, "heads": 2, "vocabulary": 512, "context": 128},
        "llama_7b": {"layers": 32, "width": 4096, "hidden": 11008, "heads": 32, "vocabulary": 32000, "context": 2048},
        "llama_13b": {"layers": 40, "width": 5120, "hidden": 13824, "heads": 40, "vocabulary": 32000, "context": 2048},
    },
    "licence": "the architecture as in transformers (Apache-2.0); no weights are used",
    "citation": "Touvron et al., 2023",
}
