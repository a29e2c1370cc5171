"""The train state, the training step and its loop; no folder of a run and no terminal."""

# The generator of a run's random numbers. Others of JAX draw other numbers for another length of a
# call, or number of devices.
KEY_IMPL = "threefry2x32"
