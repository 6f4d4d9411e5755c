"""SR-CycleGAN and SR-UNIT in PyTorch, written as one writes it there: what ours is measured with.

The same networks, losses and training step, with the names of `mmsr_jax`; images are NCHW.
"""
