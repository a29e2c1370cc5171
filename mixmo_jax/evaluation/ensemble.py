"""How the members of an ensemble are combined."""

import numpy as np
from scipy import special

from mixmo_jax.errors import invalid

ENSEMBLES = ("logits", "probabilities")


def ensemble_log_probs(
    logits: np.ndarray, ensemble: str = "logits", weights: np.ndarray | None = None
) -> np.ndarray:
    """Computes the log of the ensemble's class probabilities.

    Args:
      logits: [N, M, K] float, of the members.
      ensemble: "logits": the softmax of the members' mean logits; "probabilities": the mean of
        the members' softmax.
      weights: [M] float, the members' weights in the mean, sum to 1; None for equal weights.

    Returns:
      [N, K] float64.

    Raises:
      InputError: if there is no such way to combine members.
    """
    if ensemble not in ENSEMBLES:
        raise invalid("ensemble", ensemble, " or ".join(ENSEMBLES))
    logits = np.asarray(logits, np.float64)
    num_members = logits.shape[1]
    weights = np.full(num_members, 1 / num_members) if weights is None else np.asarray(weights)
    if ensemble == "logits":
        return special.log_softmax(np.einsum("nmk,m->nk", logits, weights), axis=-1)
    log_probs = special.log_softmax(logits, axis=-1)
    return special.logsumexp(log_probs, axis=1, b=weights[:, None])
