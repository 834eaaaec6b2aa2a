"""Every config file's variants, resolved, as text: what a changed default changes shows in review.

    python -m tests.golden_configs

rewrites tests/golden/configs/NAME-VARIANT.txt, one `path = value` a line; read the difference
before it is committed. `tests/test_configs.py` compares.
"""

import importlib
import pathlib
import types

from cxr_jax import meanings

ROOT = pathlib.Path(__file__).resolve().parents[1]
FOLDER = ROOT / "tests" / "golden" / "configs"
NAMES = sorted(p.stem for p in (ROOT / "configs").glob("[a-z]*.py") if p.stem != "common")
# What the files' docstrings offer beside the variants of their tables.
WITH_OPTIONS = {
    "adpd": [
        *("method=mil", "method=loc+mil", "fusion=0", "asl=sum", "method=mil,asl=sum"),
        *(
            "quick,method=mil",
            "quick,method=loc+mil",
            "quick,cells=14",
            "quick,method=mil,cells=14",
        ),
    ],
    "cam_detector": [
        *(
            f"{base}method={method}"
            for base in ("", "quick,")
            for method in ("lse", "lse_map", "weldon", "multimap", "stl", "gradcam", "agxnet")
        ),
        *("quick,cells=14", "cxr3,method=weldon", "smoke,method=agxnet"),
    ],
    "diagnosis": [
        *(f"{base}size={size}" for base in ("", "quick,") for size in ("4x8", "2x4")),
        *(f"{base}corpus={corpus}" for base in ("", "quick,") for corpus in ("1", "3", "10")),
        *(
            f"{base}backbone={name},vit=0"
            for base in ("", "quick,", "cxr3,")
            for name in ("densenet121", "resnet50", "resnet152")
        ),
        *(
            f"{base}{option}"
            for base in ("", "quick,")
            for option in ("backbone=none", "backbone=resnet50_hybrid", "frozen=1", "pixels=2")
        ),
        *("cxr3,hide=lungs", "cxr3,hide=outside", "cxr3,crop=lungs"),
    ],
    "findings": [
        *("quick,side=224", "cxr3,side=224"),
        *(f"pool={pool}" for pool in ("avg", "max", "lse", "exp", "linear")),
        "quick,pool=lse",
        "paper=severity",
        "quick,paper=severity",
    ],
    "lesions": [
        *(
            f"{base}{option}"
            for base in ("", "quick,")
            for option in (
                *("network=resnet50", "network=vgg16", "network=xception", "network=wsnet"),
                *("network=decovnet", "network=covidnet_ct"),
                *("pyramid=0", "fusion=0", "pyramid=0,fusion=0"),
            )
        ),
    ],
    "lungs": [
        *("method=semi", "method=pairs", "method=adain", "opacities=1"),
        *(
            f"{base},{option}"
            for base in ("quick", "healthy", "cohen", "cohen_mild", "smoke")
            for option in ("method=semi", "method=pairs", "method=adain", "opacities=1")
        ),
    ],
    "seam": [
        *(
            f"{base}method={method}"
            for base in ("", "quick,", "halves,")
            for method in ("cam", "multiscale_cam", "seam", "seam_nam", "unet")
        ),
        *("method=cam,bag=8", "quick,method=cam,bag=8", "halves,method=cam,bag=8"),
        *("quick,method=cam,lungs=map", "quick,method=cam,lungs=pool"),
        *("reference=released", "quick,reference=released"),
    ],
    "severity": [
        *("pool=mean", "quick,pool=mean", "vit=0", "quick,vit=0", "smoke,vit=0"),
        *(
            f"{base}regime={regime}"
            for base in ("", "quick,", "fewlabels,", "hospitals,", "smoke,")
            for regime in ("supervised", "progressive", "one_step")
        ),
        *(
            f"backbone={name},vit=0"
            for name in ("densenet121", "densenet169", "densenet201", "resnet18", "resnet50")
        ),
        *("backbone=resnet152,vit=0", "backbone=nasnet_large,vit=0"),
        *("backbone=none", "backbone=resnet50_hybrid"),
        *(
            f"quick,backbone={name}"
            for name in ("none", "resnet18", "nasnet_large", "resnet50_hybrid")
        ),
        *("paper=corpus", "paper=corpus,backbone=none", "paper=corpus,backbone=resnet50_hybrid"),
        *("paper=corpus,trained=1", "smoke,paper=corpus"),
    ],
    "simclr": [
        f"{base}backbone={name}"
        for base in ("", "quick,", "cxr3,", "smoke,")
        for name in ("none", "resnet50_hybrid")
    ],
}


def module(name: str) -> types.ModuleType:
    """configs/NAME.py."""
    return importlib.import_module(f"configs.{name}")


def variants(name: str) -> list[str]:
    """The variants of a file whose resolved configs are kept, '' among them."""
    return [*module(name).VARIANTS, *WITH_OPTIONS.get(name, ())]


def path_of(name: str, variant: str) -> pathlib.Path:
    """severity, 'quick,pool=mean' -> severity-quick-pool=mean.txt in the folder."""
    return FOLDER / f"{'-'.join([name, *filter(None, variant.split(','))])}.txt"


def text_of(name: str, variant: str) -> str:
    """The resolved config, one `path = value` a line."""
    values = meanings.fields(module(name).get_config(variant))
    return "".join(f"{path} = {value!r}\n" for path, value in values.items())


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    texts = {path_of(name, v): text_of(name, v) for name in NAMES for v in variants(name)}
    for path in set(FOLDER.glob("*.txt")) - set(texts):
        path.unlink()
    changed = [p for p, text in texts.items() if not p.is_file() or p.read_text() != text]
    for path in changed:
        path.write_text(texts[path])
    print(f"{len(texts)} configs, {len(changed)} changed: {FOLDER}")


if __name__ == "__main__":
    main()
