"""WRN-28-10 on CIFAR-10, 300 epochs: the setting of the MixMo paper.

    python -m mixmo_jax.main --config=configs/cifar10.py:cut_mixmo+cutmix

Published top-1 accuracy in % (the authors' page): vanilla 96.37, mixup 97.07, cutmix 97.28,
mimo 96.71, linear_mixmo 96.88, cut_mixmo 97.52, linear_mixmo+cutmix 97.73,
cut_mixmo+cutmix 97.83. Not yet reproduced with this code.
"""

from mixmo_jax.configs import common


def get_config(method: str = common.DEFAULT_METHOD):
    config = common.get_config(method)
    config.dataset.name = "cifar10"
    return config
