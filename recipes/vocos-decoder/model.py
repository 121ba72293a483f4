"""The Vocos mel decoder, from mel spectrogram to the real and imaginary part of the STFT.

Follows the description in "Vocos: Closing the gap between time-domain and Fourier-based neural vocoders"
(arXiv 2306.00814): a ConvNeXt backbone that never changes the frame rate, and a head that gives magnitude and phase per
frequency. Parameter names are those of the published checkpoints, so that these load as they are. The inverse STFT
itself stays outside the engine: TensorRT has no complex numbers, and every platform has an FFT.
"""

from __future__ import annotations

import torch
from torch import nn

MELS, CHANNELS, HIDDEN, BLOCKS = 100, 512, 1536, 8
N_FFT = 1024
KERNEL = 7
EPSILON = 1e-6
LARGEST_MAGNITUDE = 1e2


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution over time, then two layers over channels, scaled and added to the input."""

    def __init__(self) -> None:
        super().__init__()
        self.dwconv = nn.Conv1d(CHANNELS, CHANNELS, KERNEL, padding=KERNEL // 2, groups=CHANNELS)
        self.norm = nn.LayerNorm(CHANNELS, eps=EPSILON)
        self.pwconv1 = nn.Linear(CHANNELS, HIDDEN)
        self.pwconv2 = nn.Linear(HIDDEN, CHANNELS)
        self.gamma = nn.Parameter(torch.full((CHANNELS,), 1 / BLOCKS))

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """Map [batch, channels, frames] to the same shape."""
        hidden = self.norm(self.dwconv(frames).transpose(1, 2))
        hidden = self.pwconv2(nn.functional.gelu(self.pwconv1(hidden)))
        return frames + (self.gamma * hidden).transpose(1, 2)


class Backbone(nn.Module):
    """Mel bands to channels, then the blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv1d(MELS, CHANNELS, KERNEL, padding=KERNEL // 2)
        self.norm = nn.LayerNorm(CHANNELS, eps=EPSILON)
        self.convnext = nn.ModuleList(ConvNeXtBlock() for _ in range(BLOCKS))
        self.final_layer_norm = nn.LayerNorm(CHANNELS, eps=EPSILON)
        for module in self.modules():
            if isinstance(module, nn.Conv1d | nn.Linear):
                # the published code truncates at 100 deviations, in a way that differs between releases of PyTorch
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, mel: torch.Tensor) -> torch.Tensor:
        """Map [batch, mels, frames] to [batch, frames, channels]."""
        frames = self.norm(self.embed(mel).transpose(1, 2)).transpose(1, 2)
        for block in self.convnext:
            frames = block(frames)
        return self.final_layer_norm(frames.transpose(1, 2))


class SpectrumHead(nn.Module):
    """Channels to log-magnitude and phase of each frequency."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(CHANNELS, N_FFT + 2)
        # not used here: the checkpoints carry the window of the inverse STFT
        self.istft = nn.Module()
        self.istft.register_buffer("window", torch.hann_window(N_FFT))

    def forward(self, frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map [batch, frames, channels] to real and imaginary part, each [batch, n_fft / 2 + 1, frames]."""
        log_magnitude, phase = self.out(frames).transpose(1, 2).chunk(2, dim=1)
        magnitude = torch.exp(log_magnitude).clamp(max=LARGEST_MAGNITUDE)
        return magnitude * torch.cos(phase), magnitude * torch.sin(phase)


class VocosDecoder(nn.Module):
    """Mel spectrogram to STFT."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.head = SpectrumHead()

    def forward(self, mel: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map a log-mel spectrogram [batch, 100, frames] to real and imaginary part, each [batch, 513, frames]."""
        return self.head(self.backbone(mel))


def build() -> nn.Module:
    """Make the decoder; its weights come from the random generators, which the export stage has seeded."""
    return VocosDecoder()


def load_weights(model: nn.Module, path: str) -> None:
    """Load a published checkpoint; its mel front end is not part of the decoder."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    model.load_state_dict({name: value for name, value in state.items() if not name.startswith("feature_extractor.")})
