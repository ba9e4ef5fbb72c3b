"""Shortens the waits of Google's client after a fault, where this is imported.

They are a second and longer; TensorFlow's client reads them from the environment.
"""

import contextlib
import itertools

with contextlib.suppress(ImportError):
    from google.api_core.retry import retry_unary

    retry_unary.exponential_sleep_generator = lambda *_, **__: itertools.repeat(0.001)
