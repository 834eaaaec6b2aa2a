"""What every experiment shares. A config file changes what its paper says otherwise."""

import ml_collections

from cxr_jax.errors import InputError


def get_config() -> ml_collections.ConfigDict:
    """Defaults of every field that the loops read."""
    config = ml_collections.ConfigDict()
    config.task = ""
    config.seed = 0  # of initialisation, order and augmentation

    config.total_steps = 1
    config.batch_size = 8  # all devices together
    config.eval_batch_size = 16
    config.precision = "float32"  # of the computation; or bfloat16. Parameters stay float32
    config.parallel = "jit"  # or pmap: per-device batch norm
    config.devices = 0  # 0: all there are
    config.init_from = ""  # a work directory, or imported weights, in place of random numbers
    config.init_include = ()  # patterns of the paths that are taken, e.g. "backbone/.*"; (): all
    config.init_exclude = ()  # patterns of those that are not
    config.init_rename = ()  # (pattern, replacement) pairs for the paths there

    config.allow_random_frozen = False  # True only to measure speed: frozen random parts

    config.log_every = 50  # steps
    config.checkpoint_every = 500
    config.keep_last = 1  # checkpoints
    config.keep_every = 0  # steps; 0: none beside the last and eval_steps
    config.eval_every = 0  # steps between validations; 0: never
    config.eval_steps = ()  # the ensemble of the final evaluation; (): the last checkpoint
    config.bootstrap = 1000  # resamples of the intervals
    config.figures = 8  # films drawn in an evaluation
    config.threads = 2  # of the input pipeline
    config.cache_mb = 1024  # memory for preprocessed films
    config.hang_warning_s = 1800  # stack dump if no step is logged for so long

    config.data = dict(
        name="phantom_cxr",
        data_dir="",  # prepared data sets; "": CXR_DATA_DIR, else ~/cxr_jax_data
        path="",  # manifest: the CSV; ct_volume: the folder that `prepare` printed
        seed=0,  # phantoms
        size=256,  # px, phantoms
        appearance="standard",  # of phantoms; or shifted (another scanner), mixed
        test_appearance="",  # of the val and test phantoms; "": as appearance
        heavy=0.0,  # 0..1, phantoms: how much of the lungs is consolidated
        test_heavy=-1.0,  # of the val and test phantoms; -1: as heavy
        diseased=0.65,  # 0..1, phantoms: share with an infection of the lungs
        test_diseased=-1.0,  # of the val and test phantoms; -1: as diseased
        first=0,  # number of the first training phantom
        slices=32,  # phantom_ct: of a volume
        positive=0.6,  # 0..1, phantom_ct: share of volumes with lesions
        label_every=4,  # phantom_ct: of the slices with a lesion, which training labels; 1: all
        train=2048,  # phantoms a split; phantom_ct: volumes
        val=128,
        test=256,
        fold=-1,  # 0..4: this fold of the training part validates; -1: none does
        min_severity=0,  # brixia_cohen: global scores between which training films are taken
        max_severity=18,
        uncertain="per_finding",  # chexpert: or zeros, ones, ignore  [PAPERS, 2]
        blank="zero",  # chexpert: a finding that is not mentioned; or ignore  [PCAM authors]
        split_by="official",  # nih_cxr14: or patient, five folds
        leave_out_overlap=False,  # cxr_3class: True if the model meets brixia_cohen later
        halves=False,  # ct_lesions: True for crops of one lung each with a weak label
    )
    # A second training set, behind the first; name "": none. Its other fields are those of `data`.
    config.extra = config.data.copy_and_resolve_references()
    config.extra.update(name="", seed=1_000_000)
    config.extra.labels = "hidden"  # or given
    config.preprocess = dict(
        size=256,  # px, square
        order=("resize", "blur", "equalize"),
        mean=128.0,  # the PCAM network's (x - 128) / 64  [PAPERS, Preprocessing]
        std=64.0,
    )
    # Ours: the papers do not give numbers. Flip is off: left and right matter.
    config.augment = dict(
        rotate_deg=5.0, shift=0.03, scale=0.1, brightness=0.1, contrast=0.2, flip=False
    )
    config.optimizer = dict(
        name="sgd",
        lr=0.0,
        momentum=0.9,
        nesterov=False,
        b1=0.9,
        b2=0.999,
        eps=1e-8,
        weight_decay=0.0,
        schedule="constant",
        warmup_steps=0,
        decay_steps=1,
        decay_rate=1.0,
        clip_norm=0.0,  # 0: no clipping
        accumulate=1,  # steps whose mean gradient makes one update
        frozen=(),  # patterns of parameter paths
        lr_factors=(),  # (pattern, factor) pairs
    )
    return config


def smoke(config: ml_collections.ConfigDict) -> None:
    """Two steps on eight films, to see that everything runs."""
    config.preprocess.size = 64
    config.data.update(size=128, train=8, val=4, test=5)
    config.total_steps = config.batch_size = config.eval_batch_size = 2
    config.log_every = config.checkpoint_every = 1
    config.bootstrap = 20
    config.figures = 2


def strong_augmentation(config: ml_collections.ConfigDict) -> None:
    """For few films, or for films of many kinds."""
    config.augment.update(rotate_deg=10.0, shift=0.06, scale=0.15, brightness=0.15, contrast=0.3)


def read_variant(
    variant: str, named: tuple[str, ...], options: dict[str, object] | None = None
) -> tuple[str, dict[str, object]]:
    """'quick' -> ('quick', {}); 'cohen,levels=1' -> ('cohen', {'levels': 1}).

    Args:
      variant: what stands after the colon of --config.
      named: the variants of this file besides the paper's setting, ''.
      options: name -> default; its type is the option's.

    Raises:
      InputError: an unknown variant or option, or a value of another type.
    """
    options = dict(options or {})
    base = ""
    for part in filter(None, variant.split(",")):
        name, equals, value = part.partition("=")
        if not equals and name in named and not base:
            base = name
        elif equals and name in options:
            kind = type(options[name])
            try:
                options[name] = kind(value)
            except ValueError as error:
                raise InputError(f"variant {part!r}: expected {kind.__name__}") from error
        else:
            known = [*named, *(f"{option}=..." for option in options)]
            raise InputError(f"variant {part!r}; expected one of {', '.join(known)}")
    return base, options
