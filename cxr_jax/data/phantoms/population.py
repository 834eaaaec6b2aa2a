"""Who is filmed, and on what machine: the options of a phantom data set."""

import dataclasses

from cxr_jax.errors import InputError

APPEARANCES = ("standard", "shifted")


@dataclasses.dataclass(frozen=True)
class Population:
    """Who is filmed, and on what machine.

    Attributes:
      normal, other_infection, covid: shares of the three diagnoses; they must sum to 1.
      cardiomegaly, edema, atelectasis, pneumothorax, pleural_effusion, support_devices: chance of
        each finding on a film (of cardiomegaly: for a patient), whatever the diagnosis.
      ap: share of AP (bedside) films.
      appearance: 'standard', or 'shifted' for another scanner (contrast, noise, grid, exposure).
      disease_extent: 0..1, raises how much of the infected lungs is covered and consolidated.

    Raises:
      InputError: a share or rate outside 0..1, shares that do not sum to 1, an unknown appearance.
    """

    normal: float = 0.35
    other_infection: float = 0.15
    covid: float = 0.50
    cardiomegaly: float = 0.06
    edema: float = 0.03
    atelectasis: float = 0.06
    pneumothorax: float = 0.06
    pleural_effusion: float = 0.06
    support_devices: float = 0.15
    ap: float = 0.40
    appearance: str = "standard"
    disease_extent: float = 0.0

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name != "appearance" and not 0 <= value <= 1:
                raise InputError(f"population.{field.name}={value!r} must lie in 0..1")
        total = self.normal + self.other_infection + self.covid
        if abs(total - 1) > 1e-6:
            raise InputError(
                f"population: normal + other_infection + covid = {total:g} must be 1; "
                "give all three shares"
            )
        if self.appearance not in APPEARANCES:
            raise InputError(
                f"population.appearance={self.appearance!r}; expected one of {APPEARANCES}"
            )
