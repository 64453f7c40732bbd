#!/usr/bin/env python3
"""Export generators of public packages, with random weights, and compare their speed with PyTorch.

    python benchmarks/zoo.py                  # all, as a table
    python benchmarks/zoo.py vit stylegan2    # some of them
    python benchmarks/zoo.py gan_face_generate --recover 32

Needs an environment of its own, with the packages of benchmarks/zoo.txt. Each generator runs in a
process of its own. Prints whether it exports, the largest difference from PyTorch of the gradient,
whether it has normal equations, the export's time, and a step's speed over PyTorch's eager mode
at batch 1, both on one thread. With --recover N, prints instead how many latents of N of its own
images, as floats, the recipe "precise" finds with a mean squared error below 1e-8, the median cost
in forward passes, and the time per latent, at batch 32.
"""

from __future__ import annotations

import argparse
import importlib.abc
import importlib.machinery
import multiprocessing
import os
import statistics
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
from pyinv.papers.precise import cost_arrays

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
        sample_size=8,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
    )
    return Calls(module, lambda m, z: m(z, 10)), (3, 8, 8), {"output": "sample"}


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
    return generator, (100, 1, 1), {"prior": pyinv.Normal()}


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
        image_size=8, patch_size=2, num_classes=3 * 256, dim=32, depth=2, heads=2, mlp_dim=64
    )
    return Calls(module, lambda m, z: m(z).view(-1, 3, 16, 16)), (3, 8, 8), {}


def mixer() -> Made:
    from mlp_mixer_pytorch import MLPMixer

    module = MLPMixer(image_size=8, channels=3, patch_size=2, dim=32, depth=2, num_classes=3 * 256)
    return Calls(module, lambda m, z: m(z).view(-1, 3, 16, 16)), (3, 8, 8), {}


def x_transformers() -> Made:
    from x_transformers import ContinuousTransformerWrapper, Encoder

    module = ContinuousTransformerWrapper(
        dim_in=16, dim_out=48, max_seq_len=16, attn_layers=Encoder(dim=32, depth=2, heads=2)
    )
    return Calls(module, lambda m, z: m(z).reshape(-1, 3, 16, 16)), (16, 16), {}


def biggan() -> Made:
    from pytorch_pretrained_biggan.config import BigGANConfig
    from pytorch_pretrained_biggan.model import Generator

    config = BigGANConfig(
        output_dim=32,
        z_dim=16,
        channel_width=8,
        layers=[(True, 16, 8), (True, 8, 4), (True, 4, 2), (False, 2, 1)],
        attention_layer_position=2,
        n_stats=3,
    )
    module = Generator(config)
    with torch.no_grad():
        for _ in range(20):  # the spectral norms of the weights
            module(torch.randn(2, 32), 0.5)
        nn.init.ones_(module.bn.weight)  # which the package leaves unset
        nn.init.zeros_(module.bn.bias)
    # The latent is z and the class's embedding.
    return Calls(module, lambda m, z: m(z, 0.5)), (32,), {}


def torchgan_infogan() -> Made:
    from torchgan.models import InfoGANGenerator

    module = InfoGANGenerator(10, 6, encoding_dims=48, step_channels=16)
    return Calls(module, lambda m, z: m(z[:, :48], z[:, 48:54], z[:, 54:])), (64,), {}


def torchgan_conditional() -> Made:
    from torchgan.models import ConditionalGANGenerator

    module = ConditionalGANGenerator(10, encoding_dims=54, step_channels=16)
    return Calls(module, lambda m, z: m(z, torch.full((z.shape[0],), 3))), (54,), {}


def torchgan_autoencoding() -> Made:
    from torchgan.models import AutoEncodingGenerator

    return AutoEncodingGenerator(encoding_dims=64, step_channels=8), (64,), {}


def mimicry_sngan() -> Made:
    from torch_mimicry.nets.sngan.sngan_32 import SNGANGenerator32

    return SNGANGenerator32(nz=64, ngf=32), (64,), {}


def mimicry_sagan() -> Made:
    from torch_mimicry.nets.sagan.sagan_32 import SAGANGenerator32

    module = SAGANGenerator32(num_classes=10, nz=64, ngf=32)
    with torch.no_grad():
        for _ in range(20):  # the spectral norms of the weights
            module(torch.randn(8, 64), torch.full((8,), 3))
    return Calls(module, lambda m, z: m(z, torch.full((z.shape[0],), 3))), (64,), {}


def mimicry_wgan_gp() -> Made:
    from torch_mimicry.nets.wgan_gp.wgan_gp_32 import WGANGPGenerator32

    return WGANGPGenerator32(nz=64, ngf=32), (64,), {}


def gigagan() -> Made:
    from gigagan_pytorch.gigagan_pytorch import Generator

    module = Generator(
        image_size=32,
        dim_capacity=4,
        dim_max=32,
        style_network={"dim": 32, "depth": 2},
        self_attn_resolutions=(16,),
        self_attn_dim_head=16,
        self_attn_heads=2,
        unconditional=True,
    )
    return Calls(module, lambda m, z: m(m.style_network(z))), (32,), {"noise": "freeze"}


def pi_gan() -> Made:
    from pi_gan_pytorch.pi_gan_pytorch import Generator

    module = Generator(image_size=8, dim=32, dim_hidden=32, siren_num_layers=2)
    nn.init.ones_(module.nerf_model.to_alpha.bias)  # opaque
    return module, (32,), {"noise": "freeze"}


def siren() -> Made:
    from siren_pytorch import SirenNet, SirenWrapper

    net = SirenNet(dim_in=2, dim_hidden=32, dim_out=3, num_layers=3)
    return Calls(SirenWrapper(net, image_width=16, image_height=16), _painted), (32,), {}


def _painted(wrapper: Any, latent: Tensor) -> Tensor:
    """Modulate a coordinate network's layers by latents."""
    x = torch.stack(
        torch.meshgrid(torch.linspace(-1, 1, 16), torch.linspace(-1, 1, 16), indexing="ij"), -1
    ).reshape(1, 256, 2)
    for layer in wrapper.net.layers:
        x = layer(x) * latent[:, None]
    return wrapper.net.last_layer(x).transpose(1, 2).reshape(-1, 3, 16, 16)


def hifi_gan() -> Made:
    from hifi_gan.models import Generator

    return Generator(_vocoder()), (80, 4), {}


def bigvgan() -> Made:
    from bigvgan.bigvgan import BigVGAN

    settings = _vocoder()
    settings.update(activation="snakebeta", snake_logscale=True, use_tanh_at_final=True)
    return BigVGAN(settings), (8, 8), {}


class _Settings(dict[str, Any]):
    def __getattr__(self, name: str) -> Any:
        if name not in self:
            raise AttributeError(name)
        return self[name]


def _vocoder() -> _Settings:
    return _Settings(
        num_mels=8,
        resblock="1",
        resblock_kernel_sizes=[3],
        resblock_dilation_sizes=[[1, 3, 5]],
        upsample_rates=[4, 2],
        upsample_kernel_sizes=[8, 4],
        upsample_initial_channel=32,
    )


def vocos() -> Made:
    from vocos.heads import ISTFTHead
    from vocos.models import VocosBackbone

    backbone = VocosBackbone(input_channels=16, dim=32, intermediate_dim=64, num_layers=2)
    return nn.Sequential(backbone, ISTFTHead(32, n_fft=64, hop_length=16)), (16, 8), {}


def descript_audio_codec() -> Made:
    from dac.model.dac import Decoder

    return Decoder(input_channel=16, channels=32, rates=[4, 2]), (16, 8), {}


def nflows() -> Made:
    from nflows.flows.realnvp import SimpleRealNVP

    module = SimpleRealNVP(16, 32, num_layers=3, num_blocks_per_layer=1)
    return Calls(module, lambda m, z: m._transform.inverse(z)[0]), (16,), {}


def nflows_spline() -> Made:
    from nflows.transforms import CompositeTransform, PiecewiseRationalQuadraticCouplingTransform
    from nflows.transforms.permutations import ReversePermutation

    layers: list[nn.Module] = []
    for _ in range(2):
        layers.append(
            PiecewiseRationalQuadraticCouplingTransform(
                torch.arange(16) % 2, _residual_net, num_bins=4, tails="linear", tail_bound=3.0
            )
        )
        layers.append(ReversePermutation(16))
    return Calls(CompositeTransform(layers), lambda m, z: m.inverse(z)[0]), (16,), {}


def _residual_net(inputs: int, outputs: int) -> nn.Module:
    from nflows.nn.nets import ResidualNet

    return ResidualNet(inputs, outputs, 32, num_blocks=1)


def normflows() -> Made:
    import normflows as nf

    flows: list[nn.Module] = []
    for _ in range(3):
        net = nf.nets.MLP([8, 32, 16], init_zeros=False)
        flows += [nf.flows.AffineCouplingBlock(net), nf.flows.LULinearPermute(16)]
    module = nf.NormalizingFlow(nf.distributions.DiagGaussian(16), flows)
    return Calls(module, lambda m, z: m.forward(z)), (16,), {}


def zuko_spline() -> Made:
    import zuko

    flow = zuko.flows.NSF(8, transforms=1, hidden_features=(32,), passes=2)
    return Calls(flow, lambda m, z: m().transform.inv(z)), (8,), {}


def fourier_neural_operator() -> Made:
    from neuralop.models import FNO
    from tensorly.plugins import use_default_einsum

    use_default_einsum()  # opt_einsum, neuralop's choice, makes a number of the batch size
    module = FNO(n_modes=(4, 4), in_channels=2, out_channels=1, hidden_channels=16, n_layers=2)
    return module, (2, 12, 12), {}


def compressai() -> Made:
    from compressai.models import FactorizedPrior

    return FactorizedPrior(16, 16).g_s, (16, 2, 2), {}


def unet() -> Made:
    from unet import UNet2D

    module = UNet2D(
        in_channels=2,
        out_classes=3,
        num_encoding_blocks=3,
        out_channels_first_layer=8,
        padding=1,
        normalization="batch",
        upsampling_type="linear",
    )
    return module, (2, 12, 12), {}


def ddpm_unet() -> Made:
    from denoising_diffusion_pytorch import Unet

    module = Unet(dim=16, dim_mults=(1, 2), attn_dim_head=16, attn_heads=2)
    return Calls(module, lambda m, z: m(z, torch.full((z.shape[0],), 10))), (3, 8, 8), {}


def perceiver_io() -> Made:
    from perceiver_pytorch import PerceiverIO

    module = PerceiverIO(
        dim=16, depth=2, queries_dim=16, logits_dim=48, num_latents=8, latent_dim=16,
        cross_dim_head=16, latent_heads=2, latent_dim_head=16,
    )  # fmt: skip
    queries = torch.randn(16, 16)
    call = lambda m, z: m(z, queries=queries).reshape(-1, 3, 16, 16)  # noqa: E731
    return Calls(module, call), (8, 16), {}


def pythae_conv() -> Made:
    from pythae.models import VAEConfig
    from pythae.models.nn.benchmarks.mnist import Decoder_Conv_AE_MNIST

    module = Decoder_Conv_AE_MNIST(VAEConfig(input_dim=(1, 28, 28), latent_dim=16))
    return module, (16,), {"output": "reconstruction", "value_range": (0.0, 1.0)}


def monai_unet_3d() -> Made:
    from monai.networks.nets import UNet

    module = UNet(
        spatial_dims=3, in_channels=1, out_channels=1, channels=(8, 16), strides=(2,), norm="batch"
    )
    return module, (1, 8, 8, 8), {}


def deepinv_swinir() -> Made:
    from deepinv.models import SwinIR

    module = SwinIR(
        img_size=8, window_size=4, depths=[2], embed_dim=16, num_heads=[2], mlp_ratio=2,
        upscale=2, upsampler="pixelshuffle", pretrained=None,
    )  # fmt: skip
    return module, (3, 8, 8), {}


def deepinv_restormer() -> Made:
    from deepinv.models import Restormer

    module = Restormer(
        dim=8, num_blocks=[1, 1, 1, 1], num_refinement_blocks=1, heads=[1, 1, 2, 2],
        pretrained=None,
    )  # fmt: skip
    return module, (3, 8, 8), {}


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
        biggan,
        torchgan_infogan,
        torchgan_conditional,
        torchgan_autoencoding,
        mimicry_sngan,
        mimicry_sagan,
        mimicry_wgan_gp,
        gigagan,
        pi_gan,
        siren,
        hifi_gan,
        bigvgan,
        vocos,
        descript_audio_codec,
        nflows,
        nflows_spline,
        normflows,
        zuko_spline,
        fourier_neural_operator,
        compressai,
        unet,
        ddpm_unet,
        perceiver_io,
        pythae_conv,
        monai_unet_3d,
        deepinv_swinir,
        deepinv_restormer,
    )
}


# Packages import these, and their generators do not use them.
_UNUSED = (
    "adabelief_pytorch", "aim", "argbind", "audiotools", "boto3", "botocore", "fire", "h5py",
    "librosa", "loguru", "numerize", "open_clip", "pandas", "pytorch_fid", "pytorch_msssim", "rdt",
    "skimage", "tensorboard", "tensorflow", "torch._six", "torch_geometric", "torchaudio",
    "torchvision", "wandb",
)  # fmt: skip


class _Absent(types.ModuleType):
    """Stands in for a module, with submodules, and classes of empty lists."""

    __version__ = "99"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name.islower():
            return importlib.import_module(f"{self.__name__}.{name}")
        return _AbsentClass(name, (), {})

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """As a decorator, leave the function as it is."""
        return arguments[0] if arguments and callable(arguments[0]) else self


class _AbsentClass(type):
    def __getattr__(cls, name: str) -> list[str]:
        if name.startswith("__"):
            raise AttributeError(name)
        return []


class _AbsentFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the modules of absent packages."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name in _UNUSED or name.partition(".")[0] in _UNUSED:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _Absent(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def replace_absent() -> None:
    sys.meta_path.append(_AbsentFinder())
    if not torch.cuda.is_available():
        torch.cuda.is_available = lambda: True  # two packages refuse to be imported otherwise


def measure(name: str, *, speeds: bool, recover: int = 0) -> dict[str, object]:
    """Export one generator, and measure it."""
    warnings.simplefilter("ignore")
    replace_absent()
    torch.manual_seed(0)
    generator, shape, options = ZOO[name]()
    torch.cuda.is_available = lambda: False
    generator = generator.eval().requires_grad_(False)
    given: dict[str, Any] = {"latent_shape": shape, "prior": pyinv.Uniform()}
    if not recover:
        given["losses"] = "mse"
    lines: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        export(generator, f"{folder}/b", progress=lines.append, **{**given, **options})
        seconds = time.perf_counter() - started
        if recover:
            return recovery(pyinv.Inverter(f"{folder}/b", batch_size=32, threads=1), recover)
        inverter = pyinv.Inverter(f"{folder}/b", batch_size=1, threads=1)
        found: dict[str, object] = {
            "normal equations": "yes" if inverter.manifest.has_normal_equations("mse") else "no",
            "export, seconds": round(seconds, 1),
            "gradient error": next(
                line.split()[-1] for line in lines if line.startswith("objective")
            ),
        }
        if speeds and "noise" not in options:
            found["times as fast as eager"] = speed(generator, inverter, shape, options)
    return found


def recovery(inverter: pyinv.Inverter, count: int) -> dict[str, object]:
    """Recover the latents of images that the generator made."""
    latents = inverter.sample(count, seed=1)
    images = inverter.generate(latents)
    started = time.perf_counter()
    found = inverter.invert(images, recipe="precise", seed=0)
    seconds = time.perf_counter() - started
    errors = ((found.latents - latents).reshape(count, -1) ** 2).mean(1)
    cost = cost_arrays(found, inverter.manifest.latent_size)["forward_equivalents"]
    return {
        "recovered": f"{(errors < 1e-8).sum()} of {count}",
        "largest error": f"{errors.max():.1e}",
        "forward passes": f"{np.median(cost):,.0f}",
        "seconds per latent": round(seconds / count, 2),
    }


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


def answer(name: str, options: dict[str, Any], answers: Any) -> None:
    """Measure one generator in a child process."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(1, 2)
    try:
        answers.send(measure(name, **options))
    except BaseException as error:
        answers.send(f"{type(error).__name__}: {error}"[:400])


def measured(name: str, **options: Any) -> dict[str, object] | str:
    """Measure one generator in a process of its own; a text if that fails."""
    # Forked, so that the imports, which take longer than most exports, are done once.
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=answer, args=(name, options, sender))
    child.start()
    sender.close()
    found: dict[str, object] | str = f"no end after {SECONDS} s"
    if receiver.poll(SECONDS):
        try:
            found = receiver.recv()
        except EOFError:
            found = "the process died"
    child.kill()
    child.join()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(ZOO))
    parser.add_argument("--no-speed", action="store_true", help="do not compare the speed")
    parser.add_argument("--recover", type=int, default=0, metavar="N", help="recover N latents")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(ZOO):
        parser.error(f"no such generator: {', '.join(sorted(unknown))}")
    torch.set_num_threads(1)
    importlib.import_module("onnxscript.optimizer")
    importlib.import_module("torch.onnx._internal.exporter._core")
    columns = ("normal equations", "gradient error", "times as fast as eager", "export, seconds")
    if arguments.recover:
        columns = ("recovered", "largest error", "forward passes", "seconds per latent")
    print(f"| generator | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for name in arguments.names or ZOO:
        found = measured(name, speeds=not arguments.no_speed, recover=arguments.recover)
        if isinstance(found, str):
            print(f"| `{name}` | {found} |", flush=True)
        else:
            row = " | ".join(str(found.get(column, "–")) for column in columns)
            print(f"| `{name}` | {row} |", flush=True)


if __name__ == "__main__":
    main()
