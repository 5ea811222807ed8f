"""Settings of a small private text classification, which tests of several folders start from."""

from __future__ import annotations

from typing import Any

FEATURES: dict[str, Any] = {
    "dataset": "sst2",
    "training": "features",
    "model": "tiny_bert",
    "method": "bookkeeping",
    "clipping": {"function": "auto_s"},
    "epsilon": 3.0,
    "steps": 5,
    "expected_batch_size": 10,
    "optimizer": {"learning_rate": 0.01},
}
