"""Benchmarks: one command each, which compares in one process, interleaved, and keeps what it measured as JSON.

python -m bench runs the whole set; python -m bench.step and its neighbours run one. No model is downloaded: the
embedded one has its weights, all others get random ones in their published shapes.
"""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers is imported, which reads it once
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
