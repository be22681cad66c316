"""From files on disk to batches: annotations, TFDS builders, prepared copies, Grain pipelines."""
