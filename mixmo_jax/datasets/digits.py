"""The handwritten digits that scikit-learn includes: 1,797 gray images of 8x8 pixels."""

import ml_collections
import numpy as np

from mixmo_jax.datasets.dataset import Split


def load(config: ml_collections.ConfigDict) -> tuple[dict[str, Split], list[str]]:
    """Loads the digits, always with the same stratified split.

    Args:
      config: The fields of `config.dataset`; none is used.

    Returns:
      "train" (1,437 images) and "test" (360), with images [N, 8, 8, 1] uint8 and labels [N] int32;
      and the class names.
    """
    from sklearn import datasets, model_selection  # takes a second

    digits = datasets.load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = digits.target.astype(np.int32)
    train, test = model_selection.train_test_split(
        np.arange(len(labels)), test_size=0.2, random_state=0, stratify=labels
    )
    splits = {
        "train": Split(images[train], labels[train]),
        "test": Split(images[test], labels[test]),
    }
    return splits, [str(name) for name in digits.target_names]
