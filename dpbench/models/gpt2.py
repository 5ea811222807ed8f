"""GPT-2, trained from scratch, in the published sizes, six small ones and one of GPT-3."""

PLUGIN = {
    "kind": "model",
    "name": "gpt2",
    "version": 1,
    "summary": "GPT-2 family from scratch: tiny, nano, micro, narrow, compact, mini, small, medium, large, xl, and GPT-3's size",
    "family": "gpt2",
    "pretrained": False,
    "synthetic": False,
    "sizes": {
        "tiny": {"layers": 2, "width": 32, "heads": 2, "vocabulary": 512, "context": 128},
        "nano": {"layers": 2, "width": 64, "heads": 4, "vocabulary": 512, "context": 128},
        "micro": {"layers": 2, "width": 128, "heads": 4, "vocabulary": 2048, "context": 128},
        "narrow": {"layers": 4, "width": 128, "heads": 4, "vocabulary": 2048, "context": 128},
        "compact": {"layers": 4, "width": 256, "heads": 4, "vocabulary": 4096, "context": 512},
        "mini": {"layers": 4, "width": 384, "heads": 6, "vocabulary": 8192, "context": 512},
        "small": {"layers": 12, "width": 768, "heads": 12, "vocabulary": 50257, "context": 1024},
        "medium": {"layers": 24, "width": 1024, "heads": 16, "vocabulary": 50257, "context": 1024},
        "large": {"layers": 36, "width": 1280, "heads": 20, "vocabulary": 50257, "context": 1024},
        "xl": {"layers": 48, "width": 1600, "heads": 25, "vocabulary": 50257, "context": 1024},
        # GPT-3's largest (Brown et al., 2020, table 2.1), with GPT-2's dense attention; its weights are not public.
        "gpt3_175b": {"layers": 96, "width": 12288, "heads": 96, "vocabulary": 50257, "context": 2048},
    },
    "licence": "MIT",
    "citation": "Radford et al., 2019",
}
