"""One pre-norm transformer block of BERT-base size: self-attention over tokens, then two layers over features.

Follows "On Layer Normalization in the Transformer Architecture"
(arXiv 2002.04745), with the GELU and the sizes of BERT-base.
"""

from __future__ import annotations

import torch
from torch import nn

FEATURES, HEADS, HIDDEN = 768, 12, 3072


class Block(nn.Module):
    """Attention and a perceptron, each behind a normalisation and added to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(FEATURES)
        self.qkv = nn.Linear(FEATURES, 3 * FEATURES)
        self.proj = nn.Linear(FEATURES, FEATURES)
        self.norm2 = nn.LayerNorm(FEATURES)
        self.fc1 = nn.Linear(FEATURES, HIDDEN)
        self.fc2 = nn.Linear(HIDDEN, FEATURES)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Map [batch, tokens, 768] to the same shape."""
        tokens = tokens + self._attend(self.norm1(tokens))
        return tokens + self.fc2(nn.functional.gelu(self.fc1(self.norm2(tokens))))

    def _attend(self, tokens: torch.Tensor) -> torch.Tensor:
        batch, length, _ = tokens.shape
        split = self.qkv(tokens).reshape(batch, length, 3, HEADS, FEATURES // HEADS).permute(2, 0, 3, 1, 4)
        query, key, value = split[0], split[1], split[2]
        weights = torch.softmax(query @ key.transpose(-2, -1) * (FEATURES // HEADS) ** -0.5, dim=-1)
        return self.proj((weights @ value).transpose(1, 2).reshape(batch, length, FEATURES))


def build() -> nn.Module:
    """Make the model with random weights."""
    return Block()
