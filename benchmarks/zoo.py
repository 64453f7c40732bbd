#!/usr/bin/env python3
"""Export generators of public packages, with random weights, and compare their speed with PyTorch.

    python benchmarks/zoo.py                  # all, as a table
    python benchmarks/zoo.py akl stylegan2    # some of them

Needs an environment of its own, with the packages of benchmarks/zoo.txt. Each generator runs in a
process of its own. Prints whether it exports, the largest difference from PyTorch of the gradient,
whether it has normal equations, the export's time, and a step's speed over PyTorch's eager mode
at batch 1.
"""

from __future__ import annotations

import argparse
import importlib.machinery
import json
import statistics
import subprocess
import sys
import tempfile
import time
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import loop
import numpy as np
import torch
from torch import Tensor, nn

import pyinv
from pyinv.export import export

SECONDS = 600
ROUNDS = 3

# A generator, its latent's shape, and options for export.
Made = tuple[nn.Module, tuple[int, ...], dict[str, Any]]


class Calls(nn.Module):
    """A module whose forward is a function of another module and the latent."""

    def __init__(self, module: nn.Module, call: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.module = module
        self.call = call

    def forward(self, latent: Tensor) -> Any:
        return self.call(self.module, latent)


def autoencoder_kl() -> Made:
    from diffusers import AutoencoderKL

    module = AutoencoderKL(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        layers_per_block=1,
    )
    return Calls(module, lambda m, z: m.decode(z)), (4, 8, 8), {"output": "sample"}


def vq_model() -> Made:
    from diffusers import VQModel

    module = VQModel(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=3,
        num_vq_embeddings=64,
    )
    call = lambda m, z: m.decode(z, force_not_quantize=True)  # noqa: E731
    return Calls(module, call), (3, 8, 8), {"output": "sample"}


def autoencoder_tiny() -> Made:
    from diffusers import AutoencoderTiny

    channels = (32, 32, 32, 32)
    module = AutoencoderTiny(
        encoder_block_out_channels=channels, decoder_block_out_channels=channels
    )
    return Calls(module, lambda m, z: m.decode(z)), (4, 4, 4), {"output": "sample"}


def asymmetric_autoencoder_kl() -> Made:
    from diffusers import AsymmetricAutoencoderKL

    module = AsymmetricAutoencoderKL(
        down_block_out_channels=(32, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_out_channels=(32, 32),
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_down_block=1,
        layers_per_up_block=1,
        latent_channels=4,
    )
    return Calls(module, lambda m, z: m.decode(z)), (4, 8, 8), {"output": "sample"}


def autoencoder_dc() -> Made:
    from diffusers import AutoencoderDC

    module = AutoencoderDC(
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(16, 32),
        decoder_block_out_channels=(16, 32),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
    )
    return Calls(module, lambda m, z: m.decode(z)), (4, 8, 8), {"output": "sample"}


def unet_2d() -> Made:
    from diffusers import UNet2DModel

    module = UNet2DModel(
        sample_size=16,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
    )
    return Calls(module, lambda m, z: m(z, 10)), (3, 16, 16), {"output": "sample"}


def dit() -> Made:
    from diffusers import DiTTransformer2DModel

    module = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        sample_size=8,
        num_embeds_ada_norm=10,
    )

    def call(module: nn.Module, latent: Tensor) -> Any:
        batch = latent.shape[0]
        steps = torch.full((1,), 10).expand(batch)
        return module(latent, timestep=steps, class_labels=torch.ones(1).long().expand(batch))

    return Calls(module, call), (4, 8, 8), {"output": "sample"}


def stylegan2() -> Made:
    from stylegan2_pytorch.stylegan2_pytorch import Generator, StyleVectorizer

    class StyleGan2(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mapping = StyleVectorizer(64, 4)
            self.synthesis = Generator(32, 64, network_capacity=2)
            self.register_buffer("noise", torch.rand(1, 32, 32, 1))

        def forward(self, z: Tensor) -> Tensor:
            styles = self.mapping(z)[:, None].expand(-1, self.synthesis.num_layers, -1)
            image: Tensor = self.synthesis(styles, self.noise.expand(z.shape[0], -1, -1, -1))
            return image

    return StyleGan2(), (64,), {}


def lightweight_gan() -> Made:
    from lightweight_gan.lightweight_gan import Generator

    return Generator(image_size=32, latent_dim=64, fmap_max=32), (64,), {"noise": "freeze"}


def torchgan_dcgan() -> Made:
    from torchgan.models import DCGANGenerator

    return DCGANGenerator(encoding_dims=64, out_size=32, step_channels=16), (64,), {}


def gan_face_generate() -> Made:
    from gan_face_generate import models

    generator = models.Generator(0, 3, 100, 64)
    file = Path(models.__file__).with_name("weights.tar")
    generator.load_state_dict(torch.load(file, map_location="cpu")["netG_state_dict"])
    return generator, (100, 1, 1), {}


def taming_vqgan() -> Made:
    from taming.modules.diffusionmodules.model import Decoder

    module = Decoder(
        ch=32,
        out_ch=3,
        ch_mult=(1, 2),
        num_res_blocks=1,
        attn_resolutions=[8],
        in_channels=3,
        resolution=16,
        z_channels=4,
    )
    return module, (4, 8, 8), {}


def pythae_vae() -> Made:
    from pythae.models import VAEConfig
    from pythae.models.nn.default_architectures import Decoder_AE_MLP

    module = Decoder_AE_MLP(VAEConfig(input_dim=(1, 16, 16), latent_dim=16))
    return module, (16,), {"output": "reconstruction", "value_range": (0.0, 1.0)}


def monai_2d() -> Made:
    from monai.networks.nets import AutoencoderKL

    return _monai(AutoencoderKL, 2), (3, 8, 8), {}


def monai_3d() -> Made:
    from monai.networks.nets import AutoencoderKL

    return _monai(AutoencoderKL, 3), (3, 4, 4, 4), {}


def _monai(kind: Any, axes: int) -> nn.Module:
    module = kind(
        spatial_dims=axes,
        in_channels=1,
        out_channels=1,
        channels=(16, 32),
        num_res_blocks=(1, 1),
        attention_levels=(False, True),
        latent_channels=3,
        norm_num_groups=8,
    )
    return Calls(module, lambda m, z: m.decode(z))


def monai_generator() -> Made:
    from monai.networks.nets import Generator

    module = Generator(
        latent_shape=(64,), start_shape=(32, 8, 8), channels=(32, 16, 1), strides=(2, 2, 1)
    )
    return module, (64,), {}


def ctgan() -> Made:
    from ctgan.synthesizers.ctgan import Generator

    return Generator(32, (64, 64), 24), (32,), {}


def freia() -> Made:
    import FrEIA.framework as framework
    import FrEIA.modules as modules

    def subnet(inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(nn.Linear(inputs, 32), nn.ReLU(), nn.Linear(32, outputs))

    flow = framework.SequenceINN(16)
    for _ in range(4):
        flow.append(modules.AllInOneBlock, subnet_constructor=subnet, permute_soft=True)
    return Calls(flow, lambda m, z: m(z, rev=True)), (16,), {"output": 0}


def zuko_nice() -> Made:
    import zuko

    flow = zuko.flows.NICE(16, transforms=3, hidden_features=(32, 32))
    return Calls(flow, lambda m, z: m().transform.inv(z)), (16,), {}


def vit() -> Made:
    from vit_pytorch import ViT

    module = ViT(
        image_size=16, patch_size=4, num_classes=3 * 256, dim=32, depth=2, heads=2, mlp_dim=64
    )
    return Calls(module, lambda m, z: m(z).view(-1, 3, 16, 16)), (3, 16, 16), {}


def mixer() -> Made:
    from mlp_mixer_pytorch import MLPMixer

    module = MLPMixer(image_size=16, channels=3, patch_size=4, dim=32, depth=2, num_classes=3 * 256)
    return Calls(module, lambda m, z: m(z).view(-1, 3, 16, 16)), (3, 16, 16), {}


def x_transformers() -> Made:
    from x_transformers import ContinuousTransformerWrapper, Encoder

    module = ContinuousTransformerWrapper(
        dim_in=16, dim_out=48, max_seq_len=16, attn_layers=Encoder(dim=32, depth=2, heads=2)
    )
    return Calls(module, lambda m, z: m(z).reshape(-1, 3, 16, 16)), (16, 16), {}


ZOO: dict[str, Callable[[], Made]] = {
    made.__name__: made
    for made in (
        autoencoder_kl,
        asymmetric_autoencoder_kl,
        autoencoder_dc,
        autoencoder_tiny,
        vq_model,
        unet_2d,
        dit,
        stylegan2,
        lightweight_gan,
        torchgan_dcgan,
        gan_face_generate,
        taming_vqgan,
        pythae_vae,
        monai_2d,
        monai_3d,
        monai_generator,
        ctgan,
        freia,
        zuko_nice,
        vit,
        mixer,
        x_transformers,
    )
}


class _Absent(types.ModuleType):
    """Stands in for torchvision, which these packages import and their generators do not use."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def replace_torchvision() -> None:
    try:
        import torchvision  # noqa: F401
    except Exception:
        for name in ("", ".transforms", ".transforms.functional", ".utils", ".models", ".ops"):
            module: Any = _Absent(f"torchvision{name}")
            module.__path__ = []
            module.__spec__ = importlib.machinery.ModuleSpec(module.__name__, None)
            sys.modules[module.__name__] = module
    if not torch.cuda.is_available():
        torch.cuda.is_available = lambda: True  # two packages refuse to be imported otherwise


def measure(name: str) -> dict[str, object]:
    """Export one generator, and measure it."""
    warnings.simplefilter("ignore")
    replace_torchvision()
    torch.manual_seed(0)
    generator, shape, options = ZOO[name]()
    torch.cuda.is_available = lambda: False
    generator = generator.eval().requires_grad_(False)
    given: dict[str, Any] = {"latent_shape": shape, "prior": pyinv.Uniform(), "losses": "mse"}
    lines: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        export(generator, f"{folder}/b", progress=lines.append, **{**given, **options})
        seconds = time.perf_counter() - started
        inverter = pyinv.Inverter(f"{folder}/b", batch_size=1)
        found: dict[str, object] = {
            "normal equations": inverter.manifest.has_normal_equations("mse"),
            "export, seconds": round(seconds, 1),
            "gradient error": next(
                line.split()[-1] for line in lines if line.startswith("objective")
            ),
        }
        if "noise" not in options:
            found["times as fast as eager"] = speed(generator, inverter, shape, options)
    return found


def speed(
    generator: nn.Module, inverter: pyinv.Inverter, shape: tuple[int, ...], options: dict[str, Any]
) -> float:
    """Return the median ratio of a step's speed over PyTorch's eager mode, at batch 1."""
    pick = options.get("output")

    def image(module: nn.Module, latent: Tensor) -> Any:
        made = module(latent)
        if pick is None:
            return made
        return getattr(made, pick) if isinstance(pick, str) and hasattr(made, pick) else made[pick]

    torch.manual_seed(1)
    latent, targets = (
        torch.randn(1, *shape),
        torch.from_numpy(inverter.generate(inverter.sample(1))),
    )
    flat = Calls(generator, lambda m, z: image(m, z).reshape(1, -1, 1, 1))
    runs = {
        "pyinv": loop.engine_run(inverter, np.asarray(targets), latent.flatten(1).numpy()),
        "eager": loop.torch_run(flat, targets.reshape(1, -1, 1, 1), latent),
    }
    steps = {name: loop.steps_for(run, 0.5) for name, run in runs.items()}
    ratios = []
    for _ in range(ROUNDS):
        seconds = {name: loop.seconds_per_step(run, steps[name]) for name, run in runs.items()}
        ratios.append(seconds["eager"] / seconds["pyinv"])
    return round(statistics.median(ratios), 1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(ZOO))
    parser.add_argument("--measure", metavar="NAME", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure)))
        return
    if unknown := set(arguments.names) - set(ZOO):
        parser.error(f"no such generator: {', '.join(sorted(unknown))}")
    columns = ("normal equations", "gradient error", "times as fast as eager", "export, seconds")
    print(f"| generator | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for name in arguments.names or ZOO:
        command = [sys.executable, __file__, "--measure", name]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
        except subprocess.TimeoutExpired:
            print(f"| {name} | no end after {SECONDS} s |", flush=True)
            continue
        if done.returncode:
            print(f"| {name} | {done.stderr.strip().splitlines()[-1][:300]} |", flush=True)
            continue
        found = json.loads(done.stdout.splitlines()[-1])
        print(f"| {name} | {' | '.join(str(found.get(c, '')) for c in columns)} |", flush=True)


if __name__ == "__main__":
    main()
