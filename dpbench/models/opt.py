"""OPT, trained from scratch, in four published sizes and a small one."""

PLUGIN = {
    "kind": "model",
    "name": "opt",
    "version": 1,
    "summary": "OPT family from scratch: opt_tiny, opt_1_3b, opt_2_7b, opt_6_7b, opt_13b",
    "family": "opt",
    "pretrained": False,
    "synthetic": False,
    "sizes": {
        "opt_tiny": {"layers": 2, "width": 32, "hidden": 128, "heads": 2, "vocabulary": 512, "context": 128},
        "opt_1_3b": {"layers": 24, "width": 2048, "hidden": 8192, "heads": 32, "vocabulary": 50272, "context": 2048},
        "opt_2_7b": {"layers": 32, "width": 2560, "hidden": 10240, "heads": 32, "vocabulary": 50272, "context": 2048},
        "opt_6_7b": {"layers": 32, "width": 4096, "hidden": 16384, "heads": 32, "vocabulary": 50272, "context": 2048},
        "opt_13b": {"layers": 40, "width": 5120, "hidden": 20480, "heads": 40, "vocabulary": 50272, "context": 2048},
    },
    "licence": "the architecture as in transformers (Apache-2.0); no weights are used",
    "citation": "Zhang et al., 2022, arXiv 2205.01068",
}
