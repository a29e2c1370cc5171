"""WRN-10-2 on the handwritten digits of scikit-learn: the first run, a minute on two CPU cores.

python -m mixmo_jax.main --config=configs/digits.py
"""

from mixmo_jax.configs import common


def get_config(method: str = common.DEFAULT_METHOD):
    config = common.get_config(method)
    config.num_epochs = 20

    config.model.depth = 10
    config.model.width = 2

    config.dataset.name = "digits"
    config.dataset.crop_padding = 1
    config.dataset.flip = False  # a flipped digit is another digit
    config.dataset.mean = ()
    config.dataset.std = ()

    config.optimizer.learning_rate = 0.2
    config.optimizer.warmup_steps = 22
    config.optimizer.decay_epochs = (13, 18)
    return config
