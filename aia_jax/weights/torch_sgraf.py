"""SGRAF in PyTorch, one caption after the other: what conversions of retrieval are verified against.

Written from the paper (Diao et al., AAAI 2021, arXiv 2101.01368); parameter names are those of the authors' files
behind the number of the encoder. Importing this needs torch.
"""

import numpy as np
import torch
from ml_collections import ConfigDict
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

_EPSILON = 1e-8
Encoded = tuple[Tensor, Tensor]


class ImageEncoder(nn.Module):
    """Regions `[I, R, F]` to vectors of length 1, `[I, R, D]`."""

    def __init__(self, num_features: int, embed_size: int):
        super().__init__()
        self.fc = nn.Linear(num_features, embed_size)

    def forward(self, features: Tensor) -> Tensor:
        """See the class."""
        return l2norm(self.fc(features))


class CaptionEncoder(nn.Module):
    """Tokens `[C, L]` of `lengths` `[C]` to vectors of length 1, `[C, L, D]`, 0 beyond the lengths."""

    def __init__(self, num_words: int, word_size: int, embed_size: int, dropout: float):
        super().__init__()
        self.embed = nn.Embedding(num_words, word_size)
        self.dropout = nn.Dropout(dropout)
        self.cap_rnn = nn.GRU(word_size, embed_size, batch_first=True, bidirectional=True)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """See the class."""
        words = self.dropout(self.embed(tokens))
        packed = pack_padded_sequence(words, lengths, batch_first=True, enforce_sorted=False)
        states, _ = pad_packed_sequence(self.cap_rnn(packed)[0], batch_first=True, total_length=tokens.shape[1])
        return l2norm(states.unflatten(2, (2, -1)).mean(2))


class SelfAttention(nn.Module):
    """Vectors `[B, N, D]` to one of length 1, `[B, D]`; with batch norm if there are always `num_regions` of them."""

    def __init__(self, size: int, num_regions: int | None, dropout: float):
        super().__init__()

        def embedding(channels: int | None) -> nn.Sequential:
            norm = [nn.BatchNorm1d(channels)] if num_regions else []
            return nn.Sequential(nn.Linear(size, size), *norm, nn.Tanh(), nn.Dropout(dropout))

        self.embedding_local = embedding(num_regions)
        self.embedding_global = embedding(size)
        self.embedding_common = nn.Sequential(nn.Linear(size, 1))

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        asked = self.embedding_local(x) * self.embedding_global(x.mean(1)).unsqueeze(1)
        return l2norm((self.embedding_common(asked).softmax(1) * x).sum(1))


class GraphStep(nn.Module):
    """A step of SGR: every node `[I, N, S]` takes from all of them."""

    def __init__(self, size: int):
        super().__init__()
        self.graph_query_w = nn.Linear(size, size)
        self.graph_key_w = nn.Linear(size, size)
        self.sim_graph_w = nn.Linear(size, size)

    def forward(self, nodes: Tensor) -> Tensor:
        """See the class."""
        edges = (self.graph_query_w(nodes) @ self.graph_key_w(nodes).mT).softmax(-1)
        return self.sim_graph_w(edges @ nodes).relu()


class Filtration(nn.Module):
    """SAF: alignments `[I, N, S]` to their weighted mean of length 1, `[I, S]`."""

    def __init__(self, size: int):
        super().__init__()
        self.attn_sim_w = nn.Linear(size, 1)
        self.bn = nn.BatchNorm1d(1)

    def forward(self, alignments: Tensor) -> Tensor:
        """See the class."""
        weights = self.bn(self.attn_sim_w(alignments).mT).sigmoid()
        weights = weights / (weights.sum(-1, keepdim=True) + _EPSILON)
        return l2norm((weights @ alignments).squeeze(1))


class SimilarityEncoder(nn.Module):
    """Images, `[I, R, D]`, and captions to scores `[C, I]`."""

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
        """One caption, `[L, D]` and `[D]` without padding, against all images: `[I]`."""
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
    """The three encoders; its `state_dict` is named as `convert.files.read_weights` names those of the authors.

    Args:
        num_words: of the vocabulary.
        num_features, num_regions: channels and number of an image's regions.
        embed_size, word_size, similarity_size: D, of the word vectors, and S.
        reasoning: "sgr" or "saf".
        dropout: of words and in the self-attention.
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
                ImageEncoder(num_features, embed_size),
                CaptionEncoder(num_words, word_size, embed_size, dropout),
                SimilarityEncoder(embed_size, similarity_size, num_regions, reasoning, dropout),
            ]
        )

    def encode_images(self, features: Tensor) -> Encoded:
        """Regions `[I, R, F]` to `[I, R, D]` of each and `[I, D]` of all."""
        regions = self[0](features)
        return regions, self[2].v_global_w(regions)

    def encode_captions(self, tokens: Tensor, lengths: Tensor) -> Encoded:
        """Tokens `[C, L]` to `[C, L, D]` of each and `[C, D]` of all."""
        words = self[1](tokens, lengths)
        wholes = [self[2].t_global_w(own[None, :length]) for own, length in zip(words, lengths.tolist(), strict=True)]
        return words, torch.cat(wholes)

    def similarity(self, images: Encoded, captions: Encoded, lengths: Tensor) -> Tensor:
        """Scores `[C, I]`, caption by caption, each of them moving SAF's running statistics in training."""
        rows = zip(*captions, lengths.tolist(), strict=True)
        return torch.stack([self[2].score(images, words[:length], whole) for words, whole, length in rows])


def l2norm(x: Tensor) -> Tensor:
    """Over the last axis."""
    return x / (torch.linalg.vector_norm(x, dim=-1, keepdim=True) + _EPSILON)


def load_torch(model: ConfigDict, state: dict[str, np.ndarray]) -> TorchSGRAF:
    """The model that a file holds, in evaluation mode, loaded with `strict=True`.

    Args:
        model: the part of a config that the file is for.
        state: the file as it was read.
    """
    sizes = ("num_regions", "embed_size", "word_size", "similarity_size", "reasoning")
    network = TorchSGRAF(
        len(state["1.embed.weight"]), model.num_features, **{name: model[name] for name in sizes}
    ).eval()
    counters = {name: value for name, value in network.state_dict().items() if name.endswith("num_batches_tracked")}
    network.load_state_dict(counters | {name: torch.from_numpy(value) for name, value in state.items()}, strict=True)
    return network
