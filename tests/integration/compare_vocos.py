"""Runs in the export environment: the recipe's decoder against the published package. Prints JSON.

Usage: python compare_vocos.py FOLDER_OF_THE_PACKAGE MODEL_PY
"""

from __future__ import annotations

import importlib.util
import json
import sys
import types
from typing import Any

import torch


def stub(name: str, **attributes: object) -> None:
    """Put a module in place of one that has no build for this PyTorch; what it offers is not used here."""
    module = types.ModuleType(name)
    for key, value in attributes.items():
        setattr(module, key, value)
    sys.modules[name] = module


def published(folder: str) -> Any:
    """Make backbone and head as the package does for the 24 kHz mel model."""
    sys.path.insert(0, folder)
    for name in ("torchaudio", "torchaudio.functional", "scipy", "encodec", "huggingface_hub"):
        stub(name, EncodecModel=None, hf_hub_download=None)
    stub("torchaudio.functional.functional", _hz_to_mel=None, _mel_to_hz=None)
    # the package's own __init__ imports all of it
    package = types.ModuleType("vocos")
    package.__path__ = [f"{folder}/vocos"]
    sys.modules["vocos"] = package
    heads, models = importlib.import_module("vocos.heads"), importlib.import_module("vocos.models")
    whole = torch.nn.Module()
    whole.backbone = models.VocosBackbone(input_channels=100, dim=512, intermediate_dim=1536, num_layers=8)
    whole.head = heads.ISTFTHead(dim=512, n_fft=1024, hop_length=256, padding="center")
    return whole.eval()


def recipe(path: str) -> Any:
    """Make the recipe's decoder."""
    spec = importlib.util.spec_from_file_location("recipe_model", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.build().eval()


def main(folder: str, path: str) -> None:
    """Compare state and results."""
    torch.manual_seed(0)
    theirs, ours = published(folder), recipe(path)
    left = {name: list(value.shape) for name, value in theirs.state_dict().items()}
    right = {name: list(value.shape) for name, value in ours.state_dict().items()}
    ours.load_state_dict(theirs.state_dict(), strict=True)
    spectrum: list[torch.Tensor] = []

    def catch(values: torch.Tensor) -> torch.Tensor:
        spectrum.append(values)
        return values

    theirs.head.istft.forward = catch
    mel = torch.randn(1, 100, 80) * 3 - 5
    with torch.no_grad():
        theirs.head(theirs.backbone(mel))
        real, imag = ours(mel)
    sys.stdout.write(
        json.dumps(
            {
                "published": left,
                "recipe": right,
                "shape": list(real.shape),
                "difference": float((torch.complex(real, imag) - spectrum[0]).abs().max()),
                "largest": float(spectrum[0].abs().max()),
                "parameters": sum(value.numel() for value in ours.parameters()),
            }
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
