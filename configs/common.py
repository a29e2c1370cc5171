"""Every field of an experiment, once. The values are those of WRN-28-10 on CIFAR.

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
    # MIMO: encoders summed with equal shares, losses with equal weights.
    "mimo": {**_MIXMO, "mixmo.alpha": 0.0, "mixmo.root": 1.0},
    "linear_mixmo": _MIXMO,
    "cut_mixmo": {**_MIXMO, "mixmo.block": "cutmix"},
    "linear_mixmo+cutmix": {**_MIXMO, **_CUTMIX},
    "cut_mixmo+cutmix": {**_MIXMO, "mixmo.block": "cutmix", **_CUTMIX},
}


def get_config(method: str = DEFAULT_METHOD) -> ml_collections.ConfigDict:
    """Returns the config of one method."""
    if method not in METHODS:
        raise ValueError(f"method={method!r}: expected one of {', '.join(METHODS)}")
    config = ml_collections.ConfigDict()
    config.method = method  # a record; the fields below are what counts
    config.seed = 0
    config.num_epochs = 300
    # Positions of a batch, B. Each holds one image for every member.
    config.batch_size = 64
    # Times an image stands in its batch for every member, b: a batch holds B / b different images.
    config.batch_repetitions = 1
    # Share of the positions at which all members see the same image (MIMO's input repetition).
    config.input_repetition = 0.0

    config.model = ml_collections.ConfigDict()
    config.model.name = "wide_resnet"  # or "preact_resnet"
    config.model.depth = 28  # wide_resnet: 6n + 4; preact_resnet: 18
    config.model.width = 10  # factor on the channels of every stage
    config.model.num_members = 1  # M
    # "float32", "bfloat16", or "auto": bfloat16 on GPU and TPU, float32 on CPU. Parameters,
    # statistics and loss are float32 in any case.
    config.model.dtype = "auto"

    config.mixmo = ml_collections.ConfigDict()
    config.mixmo.block = "linear"  # or "cutmix": rectangular patches, as CutMix does with pixels
    config.mixmo.prob = 0.5  # share of the batches that the block mixes; the others are linear
    config.mixmo.prob_until = 11 / 12  # after this share of the training, prob falls linearly to 0
    config.mixmo.alpha = 2.0  # Dirichlet concentration of the ratios; 0: equal ratios
    config.mixmo.root = 3.0  # r: the loss weights go with ratio ** (1 / r); inf: equal weights

    config.msda = ml_collections.ConfigDict()  # mixing of pixels, before the encoders
    config.msda.method = "none"  # or "mixup" or "cutmix"
    config.msda.beta = 1.0  # the ratio is drawn from Beta(beta, beta)
    config.msda.prob = 0.5  # share of the images that are mixed

    config.dataset = ml_collections.ConfigDict()
    config.dataset.name = "cifar100"
    # A folder with the data, or the archive itself. "": where tensorflow-datasets keeps its own.
    config.dataset.data_dir = ""
    config.dataset.cache_dir = ""  # for decoded images; "": beside the data
    # Share of the training images set apart, of every class, to select the best epoch. 0: none,
    # the last epoch counts. The test images are never used for it.
    config.dataset.validation_fraction = 0.0
    config.dataset.split_seed = 0  # decides which images are set apart
    # Where the training images lie: "device", "host" (sent ahead of every step), or "auto": on the
    # device if they take less than a quarter of its memory.
    config.dataset.placement = "auto"
    # image_folder: images are scaled and cropped to this; even for preact_resnet.
    config.dataset.image_size = 64
    config.dataset.test_fraction = 0.2  # image_folder: taken out if there is no folder for testing
    config.dataset.crop_padding = 4  # random crops reach this many pixels over each edge
    config.dataset.flip = True  # random horizontal flips
    # Per channel, on the scale 0 to 1. (): measured on the training images.
    config.dataset.mean = (0.4913725490196078, 0.4823529411764706, 0.4466666666666667)
    config.dataset.std = (0.2023, 0.1994, 0.2010)

    config.optimizer = ml_collections.ConfigDict()  # SGD
    # Both for b = 1. With b repetitions an epoch has b times the steps, so the rate is divided by
    # b and the warm-up, linear from 0, takes b times as long.
    config.optimizer.learning_rate = 0.1 / 2
    config.optimizer.warmup_steps = 782
    config.optimizer.warmup_epochs = 0.0  # to be added to it, for data of any size
    config.optimizer.decay_epochs = (101, 201, 226)  # the rate falls at the first step of each
    config.optimizer.decay_factor = 0.1
    config.optimizer.momentum = 0.9
    config.optimizer.nesterov = True
    # Added to the gradient as weight_decay * parameter, for all parameters. The reference has
    # 3e-4 * sum(parameter ** 2) in its loss, the gradient of which is this.
    config.optimizer.weight_decay = 2 * 3e-4

    config.evaluation = ml_collections.ConfigDict()
    config.evaluation.batch_size = 500
    config.evaluation.every_epochs = 1
    # The ensemble is the softmax of the mean "logits", or the mean of the "probabilities".
    config.evaluation.ensemble = "logits"

    config.checkpoint_every_epochs = 1
    # Steps that one call to the device runs. 0: up to 100 on GPU and TPU; 1 on CPU, where
    # convolutions inside a loop are many times slower.
    config.steps_per_call = 0

    config.update_from_flattened_dict(METHODS[method])
    return config
