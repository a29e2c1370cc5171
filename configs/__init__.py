"""Experiment configs. `common.py` holds every field; the other files change what differs."""
