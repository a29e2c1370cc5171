"""Every field of a config, once, with the values of WRN-28-10 on CIFAR.

The other config files call `get_config` and change what differs. A method's name is the config's
argument, `--config=configs/cifar100.py:cutmix`; any field can be set on the command line,
`--config.mixmo.alpha=1.0`.
"""

import ml_collections

DEFAULT_METHOD = "cut_mixmo"

# What each method changes, field by field.
_CUTMIX = {"msda.method": "cutmix"}
_MIXMO = {"model.num_members": 2, "batch_repetitions": 4}
METHODS = {
    "vanilla": {},
    "mixup": {"msda.method": "mixup"},
    "cutmix": _CUTMIX,
    # MIMO: encoders summed with equal ratios, losses with equal weights.
    "mimo": {**_MIXMO, "mixmo.alpha": 0.0, "mixmo.weight_root": 1.0},
    "linear_mixmo": _MIXMO,
    "cut_mixmo": {**_MIXMO, "mixmo.block": "cutmix"},
    "linear_mixmo+cutmix": {**_MIXMO, **_CUTMIX},
    "cut_mixmo+cutmix": {**_MIXMO, "mixmo.block": "cutmix", **_CUTMIX},
}


def get_config(method: str = DEFAULT_METHOD) -> ml_collections.ConfigDict:
    """Returns the config of a method."""
    if method not in METHODS:
        raise ValueError(f"method={method!r}: expected one of {', '.join(METHODS)}")
    config = ml_collections.ConfigDict()
    config.method = method  # a record without effect
    config.seed = 0
    config.num_epochs = 300
    # B, the positions of a batch. Each position holds one image per member.
    config.batch_size = 64
    # b: every image is repeated b times per member in its batch, which holds B / b images.
    config.batch_repetitions = 1
    # Fraction of positions where all members see the same image (MIMO's input repetition).
    config.input_repetition = 0.0
    config.label_smoothing = 0.0  # fraction of each target spread evenly over the classes

    config.model = ml_collections.ConfigDict()
    config.model.name = "wide_resnet"  # a name in mixmo_jax.models.NETWORKS
    config.model.depth = 28  # wide_resnet: 6n + 4; preact_resnet: 18
    config.model.width = 10  # factor on the channels of the stages
    config.model.num_members = 1  # M
    # Computation dtype: "float32", "bfloat16", or "auto" (bfloat16 on TPU and recent GPUs).
    # Parameters, statistics and loss are always float32.
    config.model.dtype = "auto"

    config.mixmo = ml_collections.ConfigDict()
    # A name in mixmo_jax.mixing.MASKS. "cutmix" mixes rectangular patches. Others: "rows",
    # "columns", "channels", "random_channels", "noise", "cow", "patchup_hard", "patchup_soft",
    # "patchup_2d".
    config.mixmo.block = "linear"
    config.mixmo.patch_prob = 0.5  # p: fraction of batches mixed by the block; others: linear
    # After this fraction of the run, patch_prob falls linearly to 0 at the last epoch.
    config.mixmo.patch_prob_until = 11 / 12
    config.mixmo.alpha = 2.0  # Dirichlet concentration of the ratios; 0: equal ratios
    # r: the loss weights are proportional to ratio ** (1 / r); inf: equal weights.
    config.mixmo.weight_root = 3.0

    # Unmixing: in batches mixed by patches, each head mostly sees the area of its own input.
    config.mixmo.unmix = False
    config.mixmo.unmix_until = 1 / 3  # fraction of the run at which it has faded out; inf: never
    config.mixmo.unmix_normalize = False  # divide by the mean weight: small masks keep the scale
    # How masks are resized to the features: "area" averages, or "nearest".
    config.mixmo.unmix_resize = "area"

    config.msda = ml_collections.ConfigDict()  # mixing of pixels, before the encoders
    # Or "mixup", "cutmix", or another name in mixmo_jax.mixing.MASKS that does not cut channels.
    config.msda.method = "none"
    config.msda.beta = 1.0  # the ratio is drawn from Beta(beta, beta)
    config.msda.prob = 0.5  # fraction of the images that are mixed

    config.augment = ml_collections.ConfigDict()  # beside the crops and flips of config.dataset
    # Mix each image with chains of operations on it, such as rotations (arXiv 1912.02781).
    config.augment.augmix = False
    config.augment.augmix_width = 3  # chains of an image
    config.augment.augmix_depth = 0  # operations of a chain; 0: 1 to 3, at random
    config.augment.augmix_severity = 3.0  # highest level; levels are uniform from 0.1 to it
    config.augment.augmix_alpha = 1.0  # concentration of the Dirichlet and Beta of the mixing

    config.dataset = ml_collections.ConfigDict()
    config.dataset.name = "cifar100"  # a name in mixmo_jax.datasets.DATASETS, or tfds:NAME
    # A folder with the data, or the archive itself. "": where tensorflow-datasets keeps its own.
    config.dataset.data_dir = ""
    config.dataset.cache_dir = ""  # for decoded images; "": beside the data
    # Use only the first n training images (0: all).
    config.dataset.num_train_images = 0
    # Fraction of each class's training images set apart to select the best epoch and to fit the
    # temperature (0: none; then the last epoch counts).
    config.dataset.validation_fraction = 0.0
    config.dataset.split_seed = 0  # seed of the draw of these images
    # Placement of the training images: "device", "host" (sent ahead of every step), or "auto": on
    # the device if they take at most a quarter of its memory.
    config.dataset.placement = "auto"
    # image_folder and tfds: images are scaled and cropped to this side; even for preact_resnet.
    config.dataset.image_size = 64
    # Fraction of each class that becomes the test split, if the data have no test images.
    config.dataset.test_fraction = 0.2
    config.dataset.crop_padding = 4  # random crops extend this many pixels beyond each edge
    config.dataset.flip = True  # random horizontal flips
    # Per channel, in [0, 1]. (): measured on the training images.
    config.dataset.mean = (0.4913725490196078, 0.4823529411764706, 0.4466666666666667)
    config.dataset.std = (0.2023, 0.1994, 0.2010)

    config.optimizer = ml_collections.ConfigDict()
    # "sgd", or "adamw" (momentum is its b1, and weight_decay is decoupled from the gradient).
    config.optimizer.name = "sgd"
    # "steps", see decay_epochs; or "cosine", which falls to 0 over the whole run.
    config.optimizer.schedule = "steps"
    # Both for b = 1. With b repetitions an epoch has b times the steps, so the learning rate is
    # divided by b and the warm-up, linear from 0, takes b times as long.
    config.optimizer.learning_rate = 0.1 / 2
    config.optimizer.warmup_steps = 782
    config.optimizer.warmup_epochs = 0.0  # added to warmup_steps, for data of any size
    # The learning rate falls at the first step of each of these epochs.
    config.optimizer.decay_epochs = (101, 201, 226)
    config.optimizer.decay_factor = 0.1
    config.optimizer.momentum = 0.9
    config.optimizer.nesterov = True
    # weight_decay * parameter is added to the gradient of all parameters. The reference has
    # 3e-4 * sum(parameter ** 2) in its loss, with this gradient.
    config.optimizer.weight_decay = 2 * 3e-4
    config.optimizer.clip_norm = 0.0  # maximum norm of the gradient; 0: none
    # Decay of a moving average of weights and statistics, which is evaluated beside the raw ones
    # (0: none).
    config.optimizer.ema_decay = 0.0

    config.evaluation = ml_collections.ConfigDict()
    config.evaluation.batch_size = 500
    config.evaluation.every_epochs = 1
    # The ensemble is the softmax of the mean "logits", or the mean of the "probabilities".
    config.evaluation.ensemble = "logits"
    # Indices of the members that predict. (): all.
    config.evaluation.members = ()

    config.checkpoint_every_epochs = 1
    # Folder of compiled programs, reused at the next start. "": none.
    config.compilation_cache = "~/.cache/mixmo_jax"
    # Steps per call to the device. 0: up to 100 on GPU and TPU; 1 on CPU, where convolutions
    # inside a loop are many times slower.
    config.steps_per_call = 0

    config.update_from_flattened_dict(METHODS[method])
    return config
