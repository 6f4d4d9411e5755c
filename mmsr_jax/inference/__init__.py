"""Super-resolution of slices and volumes with a trained model."""
