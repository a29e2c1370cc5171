"""The folder of a run, and what a run shows: metrics, the terminal, pictures."""
