"""TensorFlow without its notices: it only reads and writes records here."""

import os

# Read once, when TensorFlow is imported.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # the notice that it is on cannot be silenced

import tensorflow as tf

__all__ = ["tf"]
