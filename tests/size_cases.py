"""Small networks that look at their input's size, and patches and images for them."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from patchdeploy.base import Base
from patchdeploy.data import ImageDataset, Preprocessing
from patchdeploy.patch import Patch, PatchConfig
from patchdeploy.patched_model import initial_tensors

CLASSES = ("a", "b", "c")


class Same(nn.Conv2d):
    """TensorFlow's SAME padding, computed from the map."""

    def forward(self, x):
        amounts = []
        for size, stride, kernel in zip(x.shape[2:], self.stride, self.kernel_size, strict=True):
            need = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
            amounts += [need - need // 2, need // 2]
        return super().forward(F.pad(x, amounts[::-1]))


class WholeWindow(nn.Module):
    def forward(self, x):
        return F.avg_pool2d(x, x.shape[-1])


class Resized(nn.Module):
    def forward(self, x):
        return x if x.shape[-1] == 8 else F.interpolate(x, size=(8, 8))


class Factor(nn.Module):
    def forward(self, x):
        return x * (32 / x.shape[-1])


def network(*, conv=Same, pool=WholeWindow, extra=nn.Identity):
    torch.manual_seed(4)
    layers = []
    for a, b in ((3, 8), (8, 16), (16, 24)):
        layers += [conv(a, b, 3, 2, bias=False), nn.BatchNorm2d(b), nn.ReLU()]
    return nn.Sequential(*layers[:6], extra(), *layers[6:], pool(), nn.Flatten(), nn.Linear(24, 3))


def block_images():
    """24 pictures of 4 x 4 coloured blocks at 64 px, three classes."""
    draw = np.random.default_rng(0)
    coarse = draw.integers(0, 256, (24, 4, 4, 3), dtype=np.uint8)
    pixels = coarse.repeat(16, 1).repeat(16, 2)
    return ImageDataset("blocks", pixels, np.arange(24) % 3, CLASSES)


def base_of(module, images):
    preprocessing = Preprocessing((0.5,) * 3, (0.5,) * 3, 32)
    return Base.from_module(module, preprocessing, "net").with_statistics_of(images)


def patch_of(base, sides, task="task"):
    """A patch whose head is of use: scores that differ."""
    draw = np.random.default_rng(1)
    config = PatchConfig()
    tensors = {k: v.numpy() for k, v in initial_tensors(base, config, 3).items()}
    head = f"{base.head_name}.weight"
    tensors |= {head: draw.normal(size=tensors[head].shape).astype(np.float32)}
    return Patch(task, base.sha256, config, CLASSES, dict.fromkeys(sides, tensors))
