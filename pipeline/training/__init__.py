"""Training, from training stores to a trained model: examples, batches, checkpoints, the training loop, the trained run."""
