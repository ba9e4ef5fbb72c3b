"""The tests. What stands here runs before any of their imports."""

import sys
from typing import Any, cast

# PyTorch's CUDA build brings it, transformers imports it, and it crashes beside
# TensorFlow. The programs import no PyTorch.
cast(dict[str, Any], sys.modules)["triton"] = None
