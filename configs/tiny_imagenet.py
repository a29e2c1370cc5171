"""PreActResNet-18 on Tiny ImageNet, 1200 epochs: the setting of the MixMo paper.

    python -m mixmo_jax.main --config=configs/tiny_imagenet.py --config.model.width=2

Published top-1 accuracy in % for widths 1, 2, 3 (the authors' page): vanilla 62.75, 64.91, 65.84;
linear_mixmo 62.91, 67.03, 68.36; cut_mixmo 64.32, 69.12, 70.23. Not yet reproduced with this code.
"""

from mixmo_jax.configs import common


def get_config(method: str = common.DEFAULT_METHOD):
    config = common.get_config(method)
    config.num_epochs = 1200
    config.batch_size = 100

    config.model.name = "preact_resnet"
    config.model.depth = 18
    config.model.width = 1

    config.dataset.name = "tiny_imagenet"
    config.dataset.mean = (0.5, 0.5, 0.5)
    config.dataset.std = (0.5, 0.5, 0.5)

    config.optimizer.learning_rate = 0.2
    config.optimizer.warmup_steps = 1000
    config.optimizer.decay_epochs = (600, 900)
    config.optimizer.weight_decay = 1e-4
    return config
