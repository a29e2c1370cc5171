"""From a network and images to logits, and from logits to metrics."""
