"""The networks in PyTorch, for comparison, with the same layers and parameters as in the
scripts. Images are [batch, 3, height, width] in the channels_last memory format."""

import torch
from torch import nn
from torch.nn import functional as F

from SE_ResNet import STEM_FILTERS, STEM_SIDE


class ConvBn(nn.Sequential):
    """Convolution, max pooling if `pool` is greater than 1, and batch norm. Padding "SAME" requires
    odd kernels; all kernels here are odd."""

    def __init__(self, channels, filters, kernel, stride=1, padding="SAME", groups=1, pool=1):
        kernel = (kernel, kernel) if isinstance(kernel, int) else tuple(kernel)
        pad = tuple(side // 2 for side in kernel) if padding == "SAME" else 0
        super().__init__(
            nn.Conv2d(channels, filters, kernel, stride, pad, groups=groups, bias=False),
            nn.MaxPool2d(pool) if pool > 1 else nn.Identity(),
            nn.BatchNorm2d(filters),
        )


class Chain(nn.Sequential):
    """A sequence of convolutions, each followed by batch norm and ReLU."""

    def __init__(self, channels, *rows):
        layers = []
        for row in rows:
            layers += [ConvBn(channels, *row), nn.ReLU(inplace=True)]
            channels = row[0]
        super().__init__(*layers)
        self.filters = channels


class SE(nn.Module):
    """The squeeze-and-excitation block."""

    def __init__(self, channels, ratio):
        super().__init__()
        self.reduce = nn.Linear(channels, channels // ratio)
        self.expand = nn.Linear(channels // ratio, channels)

    def forward(self, x):
        gate = torch.sigmoid(self.expand(F.relu(self.reduce(x.mean((2, 3))))))
        return x * gate[:, :, None, None]


class Branches(nn.Module):
    """The outputs of several modules for the same input, concatenated along the channels."""

    def __init__(self, *branches):
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x):
        return torch.cat([branch(x) for branch in self.branches], 1)


def average_pool_branch(channels, filters):
    """Return the branch of an Inception-v4 module that starts with average pooling."""
    return nn.Sequential(
        nn.AvgPool2d(3, 1, 1, count_include_pad=False), Chain(channels, (filters, 1))
    )


def max_pool():
    """Return the max pooling that halves the height and width."""
    return nn.MaxPool2d(3, 2)


class Block(nn.Module):
    """A residual block of SE_ResNeXt.py for its Hyperparameters, with an SE block on the branch."""

    def __init__(self, channels, depth, stride, hp):
        super().__init__()
        width, filters = hp.cardinality * depth, 4 * depth
        branch = [
            *(ConvBn(channels, width, 1), nn.ReLU()),
            *(ConvBn(width, width, 3, stride, groups=hp.cardinality), nn.ReLU()),
            ConvBn(width, filters, 1),
        ]
        if hp.reduction_ratio:
            branch.append(SE(filters, hp.reduction_ratio))
        self.branch = nn.Sequential(*branch)
        changes = stride != 1 or channels != filters
        self.shortcut = ConvBn(channels, filters, 1, stride) if changes else nn.Identity()

    def forward(self, x):
        return F.relu(self.shortcut(x) + self.branch(x))


def se_resnext(hp, classes=10):
    """Return the network of SE_ResNeXt.py for its Hyperparameters."""
    channels = 64
    layers = [ConvBn(3, channels, 3), nn.ReLU(inplace=True)]
    for stage in range(3):
        for number in range(hp.blocks):
            depth = hp.depth << stage
            layers.append(Block(channels, depth, 2 if stage and not number else 1, hp))
            channels = 4 * depth
    return nn.Sequential(
        nn.ZeroPad2d(hp.padding), *layers, GlobalAveragePool(), nn.Linear(channels, classes)
    )


class ResNetBlock(nn.Module):
    """A residual block of SE_ResNet.py, with an SE block on the branch."""

    def __init__(self, channels, ratio):
        super().__init__()
        branch = [without_scale(ConvBn(channels, channels, 3))]
        self.branch = nn.Sequential(*branch, *([SE(channels, ratio)] if ratio else []))

    def forward(self, x):
        return F.relu(x + self.branch(x))


def without_scale(conv_bn):
    """Return a ConvBn whose batch norm has a constant scale of 1."""
    conv_bn[2].weight.requires_grad_(False)
    return conv_bn


def se_resnet(hp, classes=10):
    """Return the network of SE_ResNet.py for its Hyperparameters."""
    stem = nn.Conv2d(3, STEM_FILTERS, STEM_SIDE, bias=False).requires_grad_(False)
    layers = [stem, nn.ReLU(inplace=True)]
    channels = STEM_FILTERS
    for filters in hp.width, 4 * hp.width, 4 * hp.width:
        layers += [without_scale(ConvBn(channels, filters, 3, pool=2)), nn.ReLU(inplace=True)]
        layers += [ResNetBlock(filters, hp.reduction_ratio) for _ in range(hp.blocks)]
        channels = filters
    return nn.Sequential(nn.ZeroPad2d(hp.padding), *layers, Head(channels, classes))


class Head(nn.Linear):
    """The classifier of SE_ResNet.py, for the maximum of each map, divided by 8."""

    def forward(self, x):
        return super().forward(x.amax((2, 3)) / 8)


class GlobalAveragePool(nn.Module):
    """The mean of each channel over height and width."""

    def forward(self, x):
        return x.mean((2, 3))


def stem():
    """Return the stem, figure 3 of the Inception-v4 paper."""
    return nn.Sequential(
        Chain(3, (32, 3, 2, "VALID"), (32, 3, 1, "VALID"), (64, 3)),
        Branches(max_pool(), Chain(64, (96, 3, 2, "VALID"))),
        Branches(
            Chain(160, (64, 1), (96, 3, 1, "VALID")),
            Chain(160, (64, 1), (64, (7, 1)), (64, (1, 7)), (96, 3, 1, "VALID")),
        ),
        Branches(Chain(192, (192, 3, 2, "VALID")), max_pool()),
    )


class InceptionC(nn.Module):
    """The Inception-C module, figure 6. Two of its branches split at the end."""

    def __init__(self, channels):
        super().__init__()
        self.pooled = average_pool_branch(channels, 256)
        self.plain = Chain(channels, (256, 1))
        self.short = Chain(channels, (384, 1))
        self.long = Chain(channels, (384, 1), (448, (1, 3)), (512, (3, 1)))
        self.short_ends = Branches(Chain(384, (256, (1, 3))), Chain(384, (256, (3, 1))))
        self.long_ends = Branches(Chain(512, (256, (1, 3))), Chain(512, (256, (3, 1))))

    def forward(self, x):
        short, long = self.short_ends(self.short(x)), self.long_ends(self.long(x))
        return torch.cat([self.pooled(x), self.plain(x), short, long], 1)


def se_inception_v4(hp, classes=10):
    """Return the network of SE_Inception_v4.py for its Hyperparameters."""

    def gated(module, channels):
        ratio = hp.reduction_ratio
        return [module, SE(channels, ratio)] if ratio else [module]

    layers = [nn.ZeroPad2d(hp.padding), stem()]
    for _ in range(4):
        layers += gated(
            Branches(
                average_pool_branch(384, 96),
                Chain(384, (96, 1)),
                Chain(384, (64, 1), (96, 3)),
                Chain(384, (64, 1), (96, 3), (96, 3)),
            ),
            384,
        )
    layers += gated(
        Branches(
            max_pool(),
            Chain(384, (384, 3, 2, "VALID")),
            Chain(384, (192, 1), (224, 3), (256, 3, 2, "VALID")),
        ),
        1024,
    )
    for _ in range(7):
        layers += gated(
            Branches(
                average_pool_branch(1024, 128),
                Chain(1024, (384, 1)),
                Chain(1024, (192, 1), (224, (1, 7)), (256, (7, 1))),
                Chain(1024, (192, 1), (192, (1, 7)), (224, (7, 1)), (224, (1, 7)), (256, (7, 1))),
            ),
            1024,
        )
    layers += gated(
        Branches(
            max_pool(),
            Chain(1024, (192, 1), (192, 3, 2, "VALID")),
            Chain(1024, (256, 1), (256, (1, 7)), (320, (7, 1)), (320, 3, 2, "VALID")),
        ),
        1536,
    )
    for _ in range(3):
        layers += gated(InceptionC(1536), 1536)
    return nn.Sequential(*layers, GlobalAveragePool(), nn.Dropout(0.2), nn.Linear(1536, classes))


class Residual(nn.Module):
    """relu(x + SE(0.1 * branch)): branches, then a linear 1x1 convolution."""

    def __init__(self, channels, ratio, *branches):
        super().__init__()
        self.branches = Branches(*branches)
        filters = sum(branch.filters for branch in branches)
        self.linear = nn.Conv2d(filters, channels, 1)
        self.se = SE(channels, ratio) if ratio else nn.Identity()

    def forward(self, x):
        return F.relu(x + self.se(0.1 * self.linear(self.branches(x))))


def se_inception_resnet_v2(hp, classes=10):
    """Return the network of SE_Inception_resnet_v2.py for its Hyperparameters."""
    ratio = hp.reduction_ratio

    def branches_a(channels):
        return (
            Chain(channels, (32, 1)),
            Chain(channels, (32, 1), (32, 3)),
            Chain(channels, (32, 1), (48, 3), (64, 3)),
        )

    def branches_b(channels):
        return Chain(channels, (192, 1)), Chain(channels, (128, 1), (160, (1, 7)), (192, (7, 1)))

    def branches_c(channels):
        return Chain(channels, (192, 1)), Chain(channels, (192, 1), (224, (1, 3)), (256, (3, 1)))

    reduction_a = Branches(
        max_pool(),
        Chain(384, (384, 3, 2, "VALID")),
        Chain(384, (256, 1), (256, 3), (384, 3, 2, "VALID")),
    )
    reduction_b = Branches(
        max_pool(),
        Chain(1152, (256, 1), (384, 3, 2, "VALID")),
        Chain(1152, (256, 1), (288, 3, 2, "VALID")),
        Chain(1152, (256, 1), (288, 3), (320, 3, 2, "VALID")),
    )
    gates = [SE(1152, ratio)] if ratio else [], [SE(2144, ratio)] if ratio else []
    return nn.Sequential(
        nn.ZeroPad2d(hp.padding),
        stem(),
        *(Residual(384, ratio, *branches_a(384)) for _ in range(5)),
        reduction_a,
        *gates[0],
        *(Residual(1152, ratio, *branches_b(1152)) for _ in range(10)),
        reduction_b,
        *gates[1],
        *(Residual(2144, ratio, *branches_c(2144)) for _ in range(5)),
        GlobalAveragePool(),
        nn.Dropout(0.2),
        nn.Linear(2144, classes),
    )


NETWORKS = {
    "SE_ResNet": se_resnet,
    "SE_ResNeXt": se_resnext,
    "SE_Inception_v4": se_inception_v4,
    "SE_Inception_resnet_v2": se_inception_resnet_v2,
}
