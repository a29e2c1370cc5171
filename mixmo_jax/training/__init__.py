"""The train state, the training step and its loop; no folder of a run and no terminal."""
