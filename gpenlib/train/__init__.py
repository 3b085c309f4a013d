"""Training: batches, objectives, trainer, averages (``python -m gpenlib train``)."""
