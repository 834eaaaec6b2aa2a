"""What ADPD is trained and evaluated on: Chest ImaGenome, and NIH's boxes (Müller et al. 2023).

Training films are those of `chest_imagenome`, with its 53 findings; validation and test films the
two halves of NIH's boxed ones (`nih_cxr8`), with its eight. Which of the 53 stand for each of the
eight, `config.class_mapping` says. Both sets are prepared by themselves.
"""

from cxr_jax.data.sources import chest_imagenome, nih_cxr8, prepared
from cxr_jax.data.sources.base import PreparedOptions

Options = PreparedOptions


def open_split(options: Options, split: str) -> prepared.Prepared:
    """Opens a split of one of the two prepared sets.

    Raises:
      InputError: that one is not prepared (with the command), or damaged.
    """
    if split == "train":
        return chest_imagenome.open_split(options, split)
    return nih_cxr8.open_split(nih_cxr8.Options(options.data_dir), split)
