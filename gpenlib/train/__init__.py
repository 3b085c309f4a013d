"""Training: batches, trainer, command line (``python -m gpenlib.train``)."""
