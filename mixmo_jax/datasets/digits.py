"""The handwritten digits that scikit-learn brings: 1,797 grey images of 8x8 pixels."""

import numpy as np

from mixmo_jax.datasets.dataset import Split

_TEST_SHARE = 0.2


def load() -> tuple[dict[str, Split], list[str]]:
    """Returns the splits "train" (1,437 images) and "test" (360), and the class names.

    The split is stratified and always the same.
    """
    from sklearn import datasets, model_selection

    digits = datasets.load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = digits.target.astype(np.int32)
    train, test = model_selection.train_test_split(
        np.arange(len(labels)), test_size=_TEST_SHARE, random_state=0, stratify=labels
    )
    splits = {
        "train": Split(images[train], labels[train]),
        "test": Split(images[test], labels[test]),
    }
    return splits, [str(name) for name in digits.target_names]
