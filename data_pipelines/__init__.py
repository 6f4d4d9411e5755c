"""From CT volumes to training batches: readers, masks, sampling, the dataset and its pipeline."""
