"""Ratings: 22 395 movie ratings by 679 people, a model of user and movie vectors whose movies learned from the users.

The ratings 0..10 are five classes: up to 5, 6, 7, 8, and 9 or 10. A user's vector starts at zero and moves only by that
user's own ratings, so a stranger is answered with the zero vector: as nobody in particular. Erasing a user's vector is
`row_only`. It is the baseline that forgets nothing of what the movies' vectors have learned from the user.
"""

import gzip
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from .common import Bed, data_file, split

CLASS_EDGES = (5, 6, 7, 8)  # a rating belongs to the first class whose edge it does not exceed, or to the last
CLASSES = len(CLASS_EDGES) + 1
OWNED = ("user.weight", "user_bias.weight")


class Ratings(Bed):
    """A pair (user, movie) in, five classes of rating out.

    Args:
        split_seed: deals people and rows.
    """

    name = "ratings"
    epochs = 10
    lr = 3e-3
    batch_size = 128
    l2_per_sample = 1e-5
    dimensions = 16

    def __init__(self, *, split_seed: int = 0) -> None:
        inputs, targets = table()
        self.users, self.movies = (int(count) + 1 for count in inputs.max(dim=0).values)
        super().__init__(inputs, targets, split(inputs[:, 0].tolist(), seed=split_seed))

    def build(self) -> nn.Module:
        """Return the model, users at zero, movies small and random."""
        return Taste(self.users, self.movies, self.dimensions)

    def owned_rows(self, sample_ids: Sequence[int]) -> dict[str, list[int]]:
        """Return the parameter rows that belong to these samples' users alone."""
        users = sorted(set(self.inputs[list(sample_ids), 0].tolist()))
        return {name: list(users) for name in OWNED}

    def row_only(self, weights: Mapping[str, Tensor], member: int) -> dict[str, Tensor]:
        """Return the weights with this member's rows as they were before training: zero.

        Args:
            weights: a full state dict, not written to.
            member: index into `members`.
        """
        erased = {name: tensor.clone() for name, tensor in weights.items()}
        for name, rows in self.owned_rows(self.members[member]).items():
            erased[name][rows] = 0
        return erased


class Taste(nn.Module):
    """Class scores from biases and an MLP over a user's vector, a movie's vector and their product."""

    def __init__(self, users: int, movies: int, dimensions: int) -> None:
        super().__init__()
        self.user, self.movie = nn.Embedding(users, dimensions), nn.Embedding(movies, dimensions)
        self.user_bias, self.movie_bias = nn.Embedding(users, CLASSES), nn.Embedding(movies, CLASSES)
        self.mix = nn.Sequential(nn.Linear(3 * dimensions, 32), nn.ReLU(), nn.Linear(32, CLASSES))
        for untrained in (self.user, self.user_bias, self.movie_bias):
            nn.init.zeros_(untrained.weight)
        nn.init.normal_(self.movie.weight, std=0.1)

    def forward(self, pairs: Tensor) -> Tensor:
        """Return class scores, shape (N, classes), for pairs of user and movie numbers."""
        user, movie = self.user(pairs[:, 0]), self.movie(pairs[:, 1])
        biases = self.user_bias(pairs[:, 0]) + self.movie_bias(pairs[:, 1])
        scores: Tensor = biases + self.mix(torch.cat([user, movie, user * movie], dim=-1))
        return scores


def table() -> tuple[Tensor, Tensor]:
    """Return pairs (user, movie), both numbered from 0, and rating classes."""
    lines = gzip.decompress(data_file("movietweetings", "ratings_u20_m10.csv.gz").read_bytes()).decode().splitlines()
    cells = torch.tensor([[int(cell) for cell in line.split(",")[:3]] for line in lines[1:]])
    users, movies = (torch.unique(cells[:, column], return_inverse=True)[1] for column in (0, 1))
    return torch.stack([users, movies], dim=1), torch.bucketize(cells[:, 2].contiguous(), torch.tensor(CLASS_EDGES))
