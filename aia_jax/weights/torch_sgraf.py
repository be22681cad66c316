"""SGRAF in PyTorch, to verify the conversion of retrieval models. Scores one caption at a time.

The code follows the paper (Diao et al., AAAI 2021, arXiv 2101.01368). A parameter name is the encoder's index (0
images, 1 captions, 2 similarity), a dot, and the name in the authors' files. This module imports torch.

Shapes: I images, R regions, F features of a region, C captions, L words, D embedding size, S similarity size.
"""

import numpy as np
import torch
from ml_collections import ConfigDict
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from aia_jax.models.sgraf import SGRAF_FIELDS

_EPSILON = 1e-8
Encoded = tuple[Tensor, Tensor]


class CaptionEncoder(nn.Module):
    """Encodes tokens `[C, L]` as unit vectors `[C, L, D]`. The vectors after the first `lengths` `[C]` words are 0."""

    def __init__(self, num_words: int, word_size: int, embed_size: int, dropout: float):
        super().__init__()
        self.embed = nn.Embedding(num_words, word_size)
        self.dropout = nn.Dropout(dropout)
        self.cap_rnn = nn.GRU(word_size, embed_size, batch_first=True, bidirectional=True)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        words = self.dropout(self.embed(tokens))
        packed = pack_padded_sequence(words, lengths, batch_first=True, enforce_sorted=False)
        states, _ = pad_packed_sequence(self.cap_rnn(packed)[0], batch_first=True, total_length=tokens.shape[1])
        return l2norm(states.unflatten(2, (2, -1)).mean(2))


class SelfAttention(nn.Module):
    """Pools N vectors to one unit vector by attention: `[B, N, D]` to `[B, D]`.

    If `num_regions` is given, N must be `num_regions`, and the embeddings are batch-normalised.
    """

    def __init__(self, size: int, num_regions: int | None, dropout: float):
        super().__init__()

        def embedding(channels: int | None) -> nn.Sequential:
            norm = [nn.BatchNorm1d(channels)] if num_regions else []
            return nn.Sequential(nn.Linear(size, size), *norm, nn.Tanh(), nn.Dropout(dropout))

        self.embedding_local = embedding(num_regions)
        self.embedding_global = embedding(size)
        self.embedding_common = nn.Sequential(nn.Linear(size, 1))

    def forward(self, x: Tensor) -> Tensor:
        asked = self.embedding_local(x) * self.embedding_global(x.mean(1)).unsqueeze(1)
        return l2norm((self.embedding_common(asked).softmax(1) * x).sum(1))


class GraphStep(nn.Module):
    """Computes one step of SGR: each of the N nodes in `[I, N, S]` attends to all nodes."""

    def __init__(self, size: int):
        super().__init__()
        self.graph_query_w = nn.Linear(size, size)
        self.graph_key_w = nn.Linear(size, size)
        self.sim_graph_w = nn.Linear(size, size)

    def forward(self, nodes: Tensor) -> Tensor:
        edges = (self.graph_query_w(nodes) @ self.graph_key_w(nodes).mT).softmax(-1)
        return self.sim_graph_w(edges @ nodes).relu()


class Filtration(nn.Module):
    """Computes SAF: the weighted mean of N similarity vectors `[I, N, S]`, scaled to length 1, `[I, S]`."""

    def __init__(self, size: int):
        super().__init__()
        self.attn_sim_w = nn.Linear(size, 1)
        self.bn = nn.BatchNorm1d(1)

    def forward(self, alignments: Tensor) -> Tensor:
        weights = self.bn(self.attn_sim_w(alignments).mT).sigmoid()
        weights = weights / (weights.sum(-1, keepdim=True) + _EPSILON)
        return l2norm((weights @ alignments).squeeze(1))


class SimilarityEncoder(nn.Module):
    """Scores all images for one caption; see `score`."""

    def __init__(self, embed_size: int, similarity_size: int, num_regions: int, reasoning: str, dropout: float):
        super().__init__()
        self.v_global_w = SelfAttention(embed_size, num_regions, dropout)
        self.t_global_w = SelfAttention(embed_size, None, dropout)
        self.sim_tranloc_w = nn.Linear(embed_size, similarity_size)
        self.sim_tranglo_w = nn.Linear(embed_size, similarity_size)
        self.sim_eval_w = nn.Linear(similarity_size, 1)
        if reasoning == "sgr":
            self.SGR_module = nn.ModuleList(GraphStep(similarity_size) for _ in range(3))
        else:
            self.SAF_module = Filtration(similarity_size)

    def score(self, images: Encoded, words: Tensor, whole: Tensor) -> Tensor:
        """Returns the scores `[I]` of all images for a caption, from word vectors `[L, D]` and caption vector `[D]`."""
        regions, image_wholes = images
        affinity = l2norm(functional.leaky_relu(regions @ words.T, 0.1))
        context = l2norm((9 * affinity).softmax(1).mT @ regions)
        local = l2norm(self.sim_tranloc_w((context - words) ** 2))
        overall = l2norm(self.sim_tranglo_w((image_wholes - whole) ** 2))
        alignments = torch.cat([overall.unsqueeze(1), local], dim=1)
        if hasattr(self, "SAF_module"):
            pooled = self.SAF_module(alignments)
        else:
            for step in self.SGR_module:
                alignments = step(alignments)
            pooled = alignments[:, 0]
        return self.sim_eval_w(pooled).squeeze(1).sigmoid()


class TorchSGRAF(nn.ModuleList):
    """The complete SGRAF. `state_dict` has the same names as the result of `read_torch_file`.

    `dropout` is the rate for the words and the self-attention. The other arguments are those of
    `aia_jax.models.sgraf.SGRAF`.
    """

    def __init__(
        self,
        num_words: int,
        num_features: int,
        *,
        num_regions: int = 36,
        embed_size: int = 1024,
        word_size: int = 300,
        similarity_size: int = 256,
        reasoning: str = "saf",
        dropout: float = 0.4,
    ):
        super().__init__(
            [
                nn.ModuleDict({"fc": nn.Linear(num_features, embed_size)}),
                CaptionEncoder(num_words, word_size, embed_size, dropout),
                SimilarityEncoder(embed_size, similarity_size, num_regions, reasoning, dropout),
            ]
        )

    def encode_images(self, features: Tensor) -> Encoded:
        """Encodes regions `[I, R, F]`. Returns region vectors `[I, R, D]` and image vectors `[I, D]`."""
        regions = l2norm(self[0]["fc"](features))
        return regions, self[2].v_global_w(regions)

    def encode_captions(self, tokens: Tensor, lengths: Tensor) -> Encoded:
        """Encodes tokens `[C, L]`. Returns word vectors `[C, L, D]` and caption vectors `[C, D]`."""
        words = self[1](tokens, lengths)
        wholes = [self[2].t_global_w(own[None, :length]) for own, length in zip(words, lengths.tolist(), strict=True)]
        return words, torch.cat(wholes)

    def similarity(self, images: Encoded, captions: Encoded, lengths: Tensor) -> Tensor:
        """Returns the scores `[C, I]`. Scores one caption at a time.

        In training mode, each caption updates the running statistics of SAF.
        """
        rows = zip(*captions, lengths.tolist(), strict=True)
        return torch.stack([self[2].score(images, words[:length], whole) for words, whole, length in rows])


def l2norm(x: Tensor) -> Tensor:
    """Divides `x` by its length along the last axis."""
    return x / (torch.linalg.vector_norm(x, dim=-1, keepdim=True) + _EPSILON)


def load_torch(model: ConfigDict, state: dict[str, np.ndarray]) -> TorchSGRAF:
    """Builds the PyTorch model of a weights file in evaluation mode, and loads the weights with `strict=True`.

    `model` is the `model` part of a config, and `state` has the file's arrays, `{name: array}`.
    """
    fields = {name: model[name] for name in SGRAF_FIELDS}
    network = TorchSGRAF(len(state["1.embed.weight"]), model.num_features, **fields).eval()
    network.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()}, strict=True)
    return network
