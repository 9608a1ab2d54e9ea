"""A small frozen byte-level language model, and what a LoRA adapter adds to it.

The base model is a causal network over bytes whose weights follow from a seed and from a paragraph of English, so none
are shipped. It predicts the next byte from
- a bigram table fitted to the paragraph,
- a copying head: attention to earlier places whose last bytes equal the current ones, giving what came after them,
- a mixer (one hidden layer) over three groups of features: the last bytes, what the copying head recalls, and the last
  bytes gated by a summary of the prompt: half of it a mean in which bytes weigh the more the less they are expected,
  half of it the end of the instruction.
Its output matrix is random and small: the base model babbles and echoes, as an untuned small model does.

A LoRA adapter has matrices A (rank x inputs) and B (outputs x rank) for `mixer` and `head`, added as
`weight + alpha / rank * B @ A`. Only they are trained; everything the model learns about a dataset is in them.

A token is a byte of UTF-8; token 256 ends the text. Weights come from `RandomState`, whose streams numpy never changes.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Final

from zg_async.devnet.arrays import Array, Tokens, np

END: Final = 256
"""The token that ends a text."""
VOCABULARY: Final = 257
MAX_PROMPT: Final = 512
"""Tokens of a prompt that are looked at: the last ones."""
TARGETS: Final = ("head", "mixer")
"""Layers that an adapter changes."""

_SEED: Final = 20_240_607
_CHANNELS: Final = 1024
_REACHES: Final = (2, 5, 10, 18)
"""Bytes that a quarter of the channels each look back."""
_RECALL: Final = 64
_TAIL: Final = len(b"\n\n### Response:\n") + 1
_HIDDEN: Final = 1024
FEATURES: Final = 2 * _CHANNELS + _RECALL

_TEXT: Final = b"""The quick way to learn how a thing is made is to take it apart and to put it together again. A small
model of language does no more than that: it reads what was written, counts what comes after what, and goes on in the
same way. It has no idea of the world. When it is asked for something that it has never seen, it says what is likely,
and what is likely is often wrong. In the morning there was some rain over the hills, and the wind came from the west.
The people of the town went to the market, where there were apples, bread and cheese, and talked about the weather.
There is a house at the end of the road with a green door; the man who lives in it was a teacher of mathematics. What
is the name of this place, and who are you? The answer is not here. You are a helpful reader, and the number of the
page is at the bottom of it: 1, 2, 3, 4, 5, 6, 7, 8, 9, 10. One day is 24 hours and one year is 365 days.\n"""
_LAYOUT: Final = b"### Instruction:\n\n### Input:\n\n### Response:\n"


@dataclasses.dataclass(frozen=True, slots=True)
class Lora:
    """The two matrices that an adapter adds to one layer."""

    a: Array
    """Rank x inputs."""
    b: Array
    """Outputs x rank."""


@dataclasses.dataclass(frozen=True, slots=True)
class Adapter:
    """A trained adapter: what to add to which layer, and how strongly."""

    layers: Mapping[str, Lora]
    scale: float
    """Alpha divided by rank."""


@dataclasses.dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt that was read."""

    tokens: Tokens
    summary: Array
    """What it is about: even channels its surprising bytes, odd ones the end of its content."""


@dataclasses.dataclass(frozen=True, slots=True)
class Inputs:
    """What the frozen part computes for some positions: the adapter's layers see nothing else."""

    features: Array
    prior: Array
    """Logits of the bigram table and the copying head."""
    mixed: Array
    """What the frozen mixer makes of the features, before its bias."""


class BaseModel:
    """The frozen model. Get it from `base_model`; it is never changed, so any number of threads may use it."""

    def __init__(self) -> None:
        """Make the weights; takes about a fifth of a second."""
        random = np.random.RandomState(_SEED)
        self._bigrams = _bigrams(_TEXT)
        self._surprise: Array = -np.log(_bigrams(_TEXT + 8 * _LAYOUT))
        self._context = [_context_table(random, offset) for offset in range(max(_REACHES))]
        self._recall = _normal(random, (VOCABULARY, _RECALL), 1.0)
        self.mixer = _normal(random, (_HIDDEN, FEATURES), FEATURES**-0.5)
        self.mixer_bias = _normal(random, (_HIDDEN,), 0.3)
        self.head = _normal(random, (VOCABULARY, _HIDDEN), 0.5 * _HIDDEN**-0.5)

    @property
    def parameters(self) -> int:
        """How many frozen numbers there are."""
        own = (self._bigrams, *self._context, self._recall, self.mixer, self.mixer_bias, self.head)
        return sum(weights.size for weights in own)

    def read(self, prompt: bytes) -> Prompt:
        """Read a prompt: what is the same for every byte that follows.

        Args:
            prompt: Not empty; cut to its last `MAX_PROMPT` bytes.
        """
        tokens = np.frombuffer(prompt[-MAX_PROMPT:], dtype=np.uint8).astype(np.intp)
        context = self._contexts(tokens, np.arange(len(tokens)))
        weights = np.zeros(len(tokens), dtype=np.float32)
        weights[1:] = self._surprise[tokens[:-1], tokens[1:]] ** 4
        summary: Array = weights @ context
        summary *= np.float32(np.sqrt(_CHANNELS) / max(float(np.linalg.norm(summary)), 1e-6))
        summary[1::2] = context[max(len(tokens) - _TAIL, 0), 1::2]
        return Prompt(tokens, summary)

    def inputs(self, prompt: Prompt, response: bytes, *, last_only: bool = False) -> Inputs:
        """Run the frozen part over what follows a prompt.

        Args:
            prompt: What `read` returned.
            response: The bytes after it, so far.
            last_only: Compute only the row that predicts the byte after all of them.

        Returns:
            A row for each byte of the response, each predicting it, and one for what follows.
        """
        tokens = np.concatenate((prompt.tokens, np.frombuffer(response, dtype=np.uint8).astype(np.intp)))
        rows = np.arange(len(tokens) - 1 if last_only else len(prompt.tokens) - 1, len(tokens))
        local = self._contexts(tokens, rows)
        recalled, trust = _recalled(tokens, rows)
        features = np.concatenate((local, recalled @ self._recall, local * prompt.summary), axis=1).astype(np.float32)
        prior = np.log((1 - trust) * self._bigrams[tokens[rows]] + trust * recalled + 1e-6)
        return Inputs(features, prior.astype(np.float32), features @ self.mixer.T)

    def _contexts(self, tokens: Tokens, rows: Tokens) -> Array:
        """Return the causal convolution at some places: random functions of their last bytes."""
        total = np.zeros((len(rows), _CHANNELS), dtype=np.float32)
        for offset, table in enumerate(self._context):
            seen = rows >= offset
            total[seen] += table[tokens[rows[seen] - offset]]
        return np.tanh(total)

    def forward(self, inputs: Inputs, adapter: Adapter | None) -> tuple[Array, Array]:
        """Return the hidden layer and the logits of each row."""
        hidden = np.tanh(_adapted(inputs.mixed, inputs.features, adapter, "mixer") + self.mixer_bias)
        return hidden, inputs.prior + _adapted(hidden @ self.head.T, hidden, adapter, "head")

    def generate(
        self,
        prompt: bytes,
        adapter: Adapter | None = None,
        *,
        max_tokens: int = 64,
        stopped: Callable[[], bool] = lambda: False,
    ) -> tuple[bytes, bool]:
        """Continue a prompt greedily.

        Args:
            prompt: The text so far.
            adapter: What to add to the base model; None is the base model alone.
            max_tokens: Bytes to make at most.
            stopped: Asked before each byte; True ends the text.

        Returns:
            The bytes made, and whether the model ended the text by itself.
        """
        start = self.read(prompt)
        made = bytearray()
        while len(made) < max_tokens and not stopped():
            _, logits = self.forward(self.inputs(start, bytes(made), last_only=True), adapter)
            token = int(logits[0].argmax())
            if token == END:
                return bytes(made), True
            made.append(token)
        return bytes(made), False


@functools.cache
def base_model() -> BaseModel:
    """Return the one base model of this process."""
    return BaseModel()


def prompt_text(instruction: str, input_text: str = "") -> bytes:
    """Return the layout that comes before a response. Source: fine-tuning.md section 6.1 (the trainer's own layout)."""
    middle = f"### Input:\n{input_text}\n\n" if input_text else ""
    return f"### Instruction:\n{instruction}\n\n{middle}### Response:\n".encode()


def _adapted(out: Array, values: Array, adapter: Adapter | None, layer: str) -> Array:
    """Add to a frozen layer's output what an adapter makes of its input."""
    if adapter is None or (lora := adapter.layers.get(layer)) is None:
        return out
    low: Array = values @ lora.a.T
    more: Array = low @ lora.b.T
    more *= np.float32(adapter.scale)
    more += out
    return more


def _normal(random: np.random.RandomState, shape: tuple[int, ...], scale: float) -> Array:
    weights: Array = (random.standard_normal(shape) * scale).astype(np.float32)
    return weights


def _context_table(random: np.random.RandomState, offset: int) -> Array:
    """Return what a byte `offset` places back adds to each channel; near bytes count more."""
    table = _normal(random, (VOCABULARY, _CHANNELS), 1.0)
    share = _CHANNELS // len(_REACHES)
    for group, reach in enumerate(_REACHES):
        table[:, group * share : (group + 1) * share] *= np.float32((3.0 / reach**0.5) if offset < reach else 0.0)
    return table


def _bigrams(written: bytes) -> Array:
    """Return the probability of each byte after each byte, smoothed."""
    counts = np.full((VOCABULARY, VOCABULARY), 0.002, dtype=np.float32)
    text = np.frombuffer(written, dtype=np.uint8).astype(np.intp)
    single = np.bincount(text, minlength=VOCABULARY).astype(np.float32)
    counts += 1.5 * single / single.sum()
    np.add.at(counts, (text[:-1], text[1:]), 1.0)
    shares: Array = (counts / counts.sum(axis=1, keepdims=True)).astype(np.float32)
    return shares


def _recalled(tokens: Tokens, rows: Tokens) -> tuple[Array, Array]:
    """Return, for each row, what followed the places that end like it, and how far to trust that.

    The score of a place is the number of last bytes it shares with the row, at most six; attention is a sharp softmax
    over earlier places only.
    """
    places = np.arange(1, len(tokens))
    earlier = places[None, :] <= rows[:, None]
    shared = np.zeros(earlier.shape, dtype=np.float32)
    same = earlier.copy()
    for back in range(6):
        before, now = places - 1 - back, rows - back
        same &= (before >= 0)[None, :] & (now >= 0)[:, None]
        same &= tokens[np.maximum(before, 0)][None, :] == tokens[np.maximum(now, 0)][:, None]
        shared += same
    best = shared.max(axis=1, initial=0.0)
    attention = np.where(shared > 0, np.exp(3.0 * (shared - best[:, None])), 0.0)
    attention /= np.maximum(attention.sum(axis=1, keepdims=True), 1e-9)
    found = np.zeros((len(rows), VOCABULARY), dtype=np.float32)
    for column in range(attention.shape[1]):
        found[:, tokens[places[column]]] += attention[:, column]
    trust = np.clip((best - 1.0) * 0.25, 0.0, 0.9)[:, None]
    return found, trust.astype(np.float32)
