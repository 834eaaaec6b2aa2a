"""The training step of `step.py`, written in PyTorch as one would write it there.

    pip install torch==2.13.0 && python benchmarks/torch_peer.py --config=configs/severity.py
    python benchmarks/torch_peer.py --config=configs/diagnosis.py --batch_size=2

The same network (parameter counts are printed by both), optimizer, loss, batch and image size, read
from the same config; random images, since only time is measured. Channels-last, eager and, with
--compile, torch.compile; --precision=bfloat16 is autocast. For configs of severity and diagnosis
with a DenseNet and a ViT, without dropout, of adpd, and of lesions with FeCNN whole.
"""

import argparse
import pathlib
import platform
import resource
import statistics
import sys
import time
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import ml_collections
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.common import load_config, write_result


class DenseLayer(nn.Module):
    def __init__(self, channels: int, growth: int):
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(4 * growth)
        self.conv1 = nn.Conv2d(channels, 4 * growth, 1, bias=False)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x):
        new = self.conv2(F.relu(self.norm2(self.conv1(F.relu(self.norm1(x))))))
        return torch.cat([x, new], 1)


class DenseNet(nn.Sequential):
    def __init__(self, growth: int, blocks: tuple[int, ...], channels: int, tap: int):
        parts = [
            nn.Conv2d(3, channels, 7, 2, 3, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, 1),
        ]
        for index, layers in enumerate(blocks[:tap]):
            if index:
                parts += [nn.BatchNorm2d(channels), nn.ReLU()]
                parts += [nn.Conv2d(channels, channels // 2, 1, bias=False), nn.AvgPool2d(2)]
                channels //= 2
            for _ in range(layers):
                parts.append(DenseLayer(channels, growth))
                channels += growth
        super().__init__(*parts)
        self.channels = channels


class CorpusViT(nn.Module):
    """A DenseNet cut at a tap, and a ViT over its cells."""

    def __init__(self, config):
        super().__init__()
        b, v = config.model.backbone, config.model.vit
        final = b.tap == "final"
        tap = len(b.block_sizes) if final else int(b.tap.removeprefix("block"))
        self.backbone = DenseNet(b.growth_rate, tuple(b.block_sizes), b.init_features, tap)
        if final:
            self.backbone.extend([nn.BatchNorm2d(self.backbone.channels), nn.ReLU()])
        self.frozen = not config.model.train_backbone
        self.cells = config.preprocess.size // (2 * 2**tap)
        self.embedding = nn.Conv2d(self.backbone.channels, v.width, 1)
        self.cls = nn.Parameter(torch.zeros(1, 1, v.width))
        self.position = nn.Parameter(torch.randn(1, 1 + self.cells**2, v.width) * 0.02)
        block = nn.TransformerEncoderLayer(
            v.width, v.num_heads, v.mlp_dim, 0.0, "gelu", 1e-6, batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, v.num_layers, nn.LayerNorm(v.width, 1e-6))

    def encode(self, x):
        """[B, 3, H, W] -> tokens [B, 1 + h w, D]."""
        with torch.set_grad_enabled(not self.frozen):
            features = self.backbone(x)
        tokens = self.embedding(features).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls.expand(len(x), -1, -1), tokens], 1) + self.position
        return self.blocks(tokens)


class Severity(CorpusViT):
    def __init__(self, config):
        super().__init__(config)
        head, channels = [], config.model.vit.width
        for _ in range(config.model.head_blocks):
            head += [nn.Upsample(scale_factor=2, mode="bilinear")]
            for source in (channels, channels // 2):
                head += [nn.Conv2d(source, channels // 2, 3, padding=1, bias=False)]
                head += [nn.BatchNorm2d(channels // 2), nn.ReLU()]
            channels //= 2
        self.head = nn.Sequential(*head, nn.Conv2d(channels, config.levels, 1))
        side = self.cells * 2**config.model.head_blocks
        # Any cut of the map into 0..6 costs the same.
        zones = (torch.arange(side * side) * 7 // side**2).reshape(side, side)
        self.register_buffer("zones", zones)

    def forward(self, x):
        cells = self.encode(x)[:, 1:]
        return self.head(cells.transpose(1, 2).reshape(len(x), -1, self.cells, self.cells))

    def loss(self, logits):
        pooled = [logits.masked_fill(self.zones != k, -1e30).amax((2, 3)) for k in range(1, 7)]
        pooled = torch.stack(pooled, -1)
        labels = (torch.rand(pooled.shape, device=logits.device) > 0.5).float()
        return F.binary_cross_entropy_with_logits(pooled, labels)


class Diagnosis(CorpusViT):
    def __init__(self, config):
        super().__init__(config)
        self.head = nn.Linear(config.model.vit.width, len(config.classes))

    def forward(self, x):
        return self.head(self.encode(x)[:, 0])

    def loss(self, logits):
        labels = torch.randint(logits.shape[1], (len(logits),), device=logits.device)
        return F.cross_entropy(logits, labels)


class Decoder(nn.Module):
    """One decoder layer of ADPD; drop path is left out: it is a product with a number a film."""

    def __init__(self, width: int, heads: int, factor: int, dropout: float, scale: float):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(4))
        self.self_attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.cross_attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential(
            nn.Linear(width, factor * width),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(factor * width, width),
            nn.Dropout(dropout),
        )
        self.drop = nn.Dropout(dropout)
        self.scales = nn.ParameterList(nn.Parameter(torch.full((width,), scale)) for _ in range(3))

    def forward(self, x, queries, patches):
        own = self.norms[0](x + queries)
        x = x + self.scales[0] * self.drop(self.self_attention(own, own, own)[0])
        source, asking = self.norms[1](patches), self.norms[2](x + queries)
        mixed, _ = self.cross_attention(asking, source, source, average_attn_weights=False)
        x = x + self.scales[1] * self.drop(mixed)
        return x + self.scales[2] * self.mlp(self.norms[3](x))


class Anatomy(nn.Module):
    def __init__(self, config):
        super().__init__()
        c, b = config.model, config.model.backbone
        self.method, self.weights = config.method, config.asl_weight
        self.backbone = DenseNet(
            b.growth_rate, tuple(b.block_sizes), b.init_features, len(b.block_sizes)
        )
        self.backbone.extend([nn.BatchNorm2d(self.backbone.channels), nn.ReLU()])
        self.project = nn.Sequential(
            nn.Conv2d(self.backbone.channels, c.width, 1), nn.Dropout(c.dropout)
        )
        cells = (config.preprocess.size // 2 ** (1 + len(b.block_sizes))) ** 2
        self.register_buffer("positions", torch.randn(cells, c.width))
        self.queries = nn.Parameter(torch.randn(29, c.width) * c.width**-0.5)
        self.block = Decoder(c.width, c.num_heads, c.mlp_factor, c.dropout, c.layer_scale)
        self.presence = nn.Linear(c.width, 1)
        self.findings = nn.Linear(c.width, len(config.classes))
        hidden = [nn.Linear(c.width, c.width), nn.ReLU(), nn.Dropout(c.dropout)]
        hidden += [nn.Linear(c.width, c.width), nn.ReLU(), nn.Dropout(c.dropout)]
        self.boxes = nn.Sequential(*hidden, nn.Linear(c.width, 4), nn.Sigmoid())

    def forward(self, x):
        patches = self.project(self.backbone(x)).flatten(2).transpose(1, 2) + self.positions
        start = torch.zeros(len(x), *self.queries.shape, device=x.device)
        tokens = self.block(start, self.queries, patches)
        return self.boxes(tokens), self.presence(tokens)[..., 0], self.findings(tokens)

    def loss(self, out):
        boxes, presence, findings = out
        true = torch.rand_like(boxes) * 0.5 + 0.25
        l1 = (boxes - true).abs().sum((1, 2)) / boxes.shape[1]
        terms = 5 * l1 + 2 * (1 - giou(boxes, true)).mean(1)
        there = (torch.rand_like(presence) > 0.2).float()
        terms = terms + F.binary_cross_entropy_with_logits(presence, there, reduction="none").mean(
            1
        )
        if "loc" in self.method:
            labels = (torch.rand_like(findings) > 0.9).float()
            terms = terms + self.weights.loc * asymmetric(findings.sigmoid(), labels).mean((1, 2))
        if "mil" in self.method:
            pooled = torch.exp(5 * findings.sigmoid()).mean(1).log() / 5
            labels = (torch.rand_like(pooled) > 0.9).float()
            terms = terms + self.weights.mil * asymmetric(pooled, labels).mean(1)
        return terms.mean()


class Bottleneck(nn.Module):
    def __init__(self, channels: int, width: int, stride: int):
        super().__init__()
        self.branch = nn.Sequential(
            *(nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
            nn.Conv2d(width, width, 3, stride, 1, bias=False),
            *(nn.BatchNorm2d(width), nn.ReLU()),
            *(nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)),
        )
        fits = stride == 1 and channels == 4 * width
        shortcut = [nn.Conv2d(channels, 4 * width, 1, stride, bias=False)]
        shortcut += [nn.BatchNorm2d(4 * width)]
        self.shortcut = nn.Identity() if fits else nn.Sequential(*shortcut)

    def forward(self, x):
        return F.relu(self.branch(x) + self.shortcut(x))


class FeCNN(nn.Module):
    """A ResNet of bottlenecks, a pyramid over its last three stages and two levels more, fusion."""

    levels = 5

    def __init__(self, config):
        super().__init__()
        c, b = config.model, config.model.backbone
        channels, width, classes = b.init_features, c.width, len(config.classes)
        self.stem = nn.Sequential(
            *(nn.Conv2d(3, channels, 7, 2, 3, bias=False), nn.BatchNorm2d(channels), nn.ReLU()),
            nn.MaxPool2d(3, 2, 1),
        )
        stages, self.momentum = [], c.momentum
        for index, count in enumerate(b.block_sizes):
            inside, blocks = b.init_features * 2**index, []
            for k in range(count):
                blocks.append(Bottleneck(channels, inside, 2 if index and not k else 1))
                channels = 4 * inside
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)
        wide = [channels // 4, channels // 2, channels]
        self.lateral = nn.ModuleList(
            nn.Sequential(nn.Conv2d(n, width, 1, bias=False), nn.BatchNorm2d(width)) for n in wide
        )
        self.smooth = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in wide)
        self.more = nn.ModuleList(nn.Conv2d(n, width, 3, 2, 1) for n in (channels, width))
        self.level = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width))
            for _ in range(self.levels)
        )
        self.drop = nn.Dropout(c.dropout)
        self.score = nn.ModuleList(nn.Linear(width, classes) for _ in range(self.levels))
        self.register_buffer("errors", torch.full((self.levels,), 0.12))
        self.classes = nn.Linear(self.levels * classes, classes, bias=False)

    def forward(self, x):
        x, maps = self.stem(x), []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        merged = None
        found = []
        for lateral, smooth, cells in reversed(list(zip(self.lateral, self.smooth, maps[-3:]))):
            own = lateral(cells)
            merged = own if merged is None else own + F.interpolate(merged, scale_factor=2)
            found.insert(0, smooth(merged))
        found.append(self.more[0](maps[-1]))
        found.append(self.more[1](F.relu(found[-1])))
        vectors = [level(cells).mean((2, 3)) for level, cells in zip(self.level, found)]
        scores = torch.stack([F.relu(s(self.drop(v))) for s, v in zip(self.score, vectors)], 1)
        errors = self.errors.clamp(1e-3, 0.5)
        weights = 0.5 * torch.log((1 - errors) / errors)
        return self.classes((weights[:, None] * scores).flatten(1)), scores

    def loss(self, out):
        logits, scores = out
        labels = torch.randint(logits.shape[1], (len(logits),), device=logits.device)
        with torch.no_grad():
            wrong = (scores.argmax(2) != labels[:, None]).float().mean(0)
            self.errors.mul_(self.momentum).add_(wrong, alpha=1 - self.momentum)
        return F.cross_entropy(logits, labels)


def asymmetric(probs, labels):
    """ASL, gamma- 4, gamma+ 1, clip 0.05."""
    low = (probs - 0.05).clamp(min=0)
    positive = (1 - probs) * probs.clamp(min=1e-8).log()
    negative = low**4 * (1 - low).clamp(min=1e-8).log()
    return -(labels * positive + (1 - labels) * negative)


def giou(a, b):
    """Of boxes cxcywh [..., 4]."""
    a0, a1 = a[..., :2] - a[..., 2:] / 2, a[..., :2] + a[..., 2:] / 2
    b0, b1 = b[..., :2] - b[..., 2:] / 2, b[..., :2] + b[..., 2:] / 2
    shared = (torch.minimum(a1, b1) - torch.maximum(a0, b0)).clamp(min=0).prod(-1)
    union = (a1 - a0).prod(-1) + (b1 - b0).prod(-1) - shared
    hull = (torch.maximum(a1, b1) - torch.minimum(a0, b0)).prod(-1)
    return shared / union - (hull - union) / hull


KINDS = {"severity": Severity, "diagnosis": Diagnosis, "adpd": Anatomy, "lesions": FeCNN}


def main() -> None:
    args = _parser().parse_args()
    write_result(measured(args), args.output)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--batch_size", type=int, default=0, help="0: the config's")
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--output", type=pathlib.Path)
    return parser


def measured(args: argparse.Namespace) -> dict[str, Any]:
    """The row of a config that `args` has changed."""
    config = load_config(args.config)
    config.batch_size = args.batch_size or config.batch_size
    torch.manual_seed(0)
    # On CUDA as JAX multiplies there by default, and with the fastest convolutions for the shapes.
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    step = Step(config, args)
    start = time.perf_counter()
    step()
    first_s = time.perf_counter() - start
    times = []
    for _ in range(args.steps):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    seconds = statistics.median(times)
    return {
        "config": args.config,
        "peer": f"torch {torch.__version__}{' compiled' if args.compile else ' eager'}",
        "batch_size": config.batch_size,
        "precision": args.precision,
        "parameters_M": round(step.parameters / 1e6, 2),
        "first_step_s": round(first_s, 1),
        "step_s": round(seconds, 4),
        "images_per_s": round(config.batch_size / seconds, 2),
        "peak_memory_GiB": round(_peak_memory(), 2),
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
    }


class Step:
    """A training step; `parameters`: of the model."""

    def __init__(self, config: ml_collections.ConfigDict, args: argparse.Namespace):
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        model = KINDS[config.task](config).to(self._device, memory_format=torch.channels_last)
        model.train()
        if not config.model.get("train_backbone", True):
            model.backbone.eval().requires_grad_(False)
        self.parameters = sum(p.numel() for p in model.parameters())
        self._model, self._bfloat16 = model, args.precision == "bfloat16"
        self._trained = [p for p in model.parameters() if p.requires_grad]
        if config.optimizer.name == "sgd":
            self._optimizer = torch.optim.SGD(
                self._trained, config.optimizer.lr, config.optimizer.momentum
            )
        else:
            self._optimizer = torch.optim.AdamW(self._trained, config.optimizer.lr)
        self._clip_norm = config.optimizer.clip_norm
        self._forward = torch.compile(model) if args.compile else model
        size = config.preprocess.size
        x = torch.randn(config.batch_size, 3, size, size, device=self._device)
        self._images = x.contiguous(memory_format=torch.channels_last)

    def __call__(self) -> None:
        self._optimizer.zero_grad()
        with torch.autocast(self._device, torch.bfloat16, enabled=self._bfloat16):
            out = self._forward(self._images)
        out = tuple(x.float() for x in out) if isinstance(out, tuple) else out.float()
        loss = self._model.loss(out)
        loss.backward()
        if self._clip_norm:
            nn.utils.clip_grad_norm_(self._trained, self._clip_norm)
        self._optimizer.step()
        loss.item()  # waits for the device


def _peak_memory() -> float:
    """GiB: of the GPU, or of the process where it computes on the CPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
