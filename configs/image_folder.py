"""PreActResNet-18 on a folder of images, one folder for each class.

    python -m mixmo_jax.main --config=configs/image_folder.py --config.dataset.data_dir=/path

/path, a folder or a zip or tar archive, holds train/<class>/ and test/<class>/ (or val/), or
<class>/ alone: then a part of every class is taken for testing (`dataset.test_fraction`). With both
test/ and val/, the best epoch is selected on val/. Classes, mean and standard deviation follow from
the images.
"""

from mixmo_jax.configs import common, tiny_imagenet


def get_config(method: str = common.DEFAULT_METHOD):
    config = tiny_imagenet.get_config(method)
    config.num_epochs = 100
    config.dataset.name = "image_folder"
    config.dataset.mean = ()
    config.dataset.std = ()
    config.optimizer.warmup_steps = 0
    config.optimizer.warmup_epochs = 5.0
    config.optimizer.decay_epochs = (50, 75)
    return config
