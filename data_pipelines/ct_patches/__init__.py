"""The TFDS dataset of CT patches."""
