"""WRN-28-10 on CIFAR-100, 300 epochs: the setting of the MixMo paper.

    python -m mixmo_jax.main --config=configs/cifar100.py:cut_mixmo+cutmix

Published top-1 accuracy in % (the authors' page): vanilla 81.79, mixup 83.43, cutmix 83.95,
mimo 82.92, linear_mixmo 82.96, cut_mixmo 85.52-85.59, linear_mixmo+cutmix 85.36-85.57,
cut_mixmo+cutmix 85.77-85.92. Not yet reproduced with this code.
"""

from mixmo_jax.configs import common


def get_config(method: str = common.DEFAULT_METHOD):
    config = common.get_config(method)
    config.dataset.name = "cifar100"
    return config
