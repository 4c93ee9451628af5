"""kiwi-static as a module of the SentenceTransformer library: trainable by its losses, opened by every tool that takes its models.

    encoder = KiwiStaticEncoder.open(kiwi)
    model = SentenceTransformer(modules=[KiwiStaticModule.from_encoder(encoder)])
    ...                                                  # train with the library
    model.save(folder)
    SentenceTransformer(folder, trust_remote_code=True)  # the library wants that word for any module not its own

A folder so saved is also opened by `open_encoder(folder)`, without torch. Imported on demand: torch and the library take
seconds. Knows nothing of training itself.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from kiwipiepy import Kiwi
from safetensors.torch import save_file
from sentence_transformers.base.modules import InputModule
from torch import Tensor, nn

from pipeline.encoding.content import ContentReader
from pipeline.encoding.kiwi_static import KiwiStaticEncoder, unknown_vectors
from pipeline.encoding.trained_table import CONFIG_FILE, KIWI_MODEL_KEY, WEIGHTS_FILE, WEIGHTS_NAME, check_kiwi_model
from pipeline.errors import EncoderFailed
from pipeline.korean.morphemes import Analyser

_HUB_OPTIONS = ("token", "cache_folder", "revision", "local_files_only")  # of the library, for finding the files


class KiwiStaticModule(InputModule):
    """An embedding for each morpheme, summed over a text's content and brought to length 1.

    The weights of frequent words are folded into the vectors, so that training changes both. Vectors of unknown forms are
    fixed. Equals `KiwiStaticEncoder` to 1e-5 before training.
    """

    def __init__(self, kiwi: Kiwi, vectors: Tensor, kiwi_model: str) -> None:
        """`vectors` is float32 (V, dim), weights folded in; `kiwi_model` is the version of the model whose ids they have."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._kiwi = kiwi
        self._kiwi_model = kiwi_model
        self._reader = ContentReader(kiwi, len(vectors))
        self.embedding = nn.EmbeddingBag.from_pretrained(vectors, freeze=False, mode="sum")

    @classmethod
    def from_encoder(cls, encoder: KiwiStaticEncoder) -> KiwiStaticModule:
        """The module that gives the vectors of `encoder`."""
        return cls(encoder.kiwi, torch.from_numpy(encoder.weighted_vectors), encoder.table.version)

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **_: Any) -> dict[str, Tensor | Any]:
        """Rows of the embedding for each text, and the sum of its unknown forms' vectors."""
        texts = [f"{prompt}{text}" if prompt else text for text in inputs]
        content = self._reader.read(list(self._kiwi.tokenize(iter(texts))))
        unknown = torch.zeros(len(texts), self.get_embedding_dimension())
        vectors = torch.from_numpy(unknown_vectors(content.forms, self.get_embedding_dimension()))
        unknown.index_add_(0, torch.from_numpy(content.form_texts), vectors)
        lengths = torch.bincount(torch.from_numpy(content.row_texts), minlength=len(texts))
        offsets = torch.cumsum(lengths, 0) - lengths
        return {"input_ids": torch.from_numpy(content.rows), "offsets": offsets, "unknown": unknown}

    def forward(self, features: dict[str, Tensor | Any], **_: Any) -> dict[str, Tensor | Any]:
        """Adds `sentence_embedding`: (texts, dim), unit rows, zero for a text without content."""
        known = self.embedding(features["input_ids"], features["offsets"])
        features["sentence_embedding"] = nn.functional.normalize(known + features["unknown"].to(known.dtype), dim=1)
        return features

    def get_embedding_dimension(self) -> int:
        return self.embedding.embedding_dim

    @property
    def max_seq_length(self) -> None:
        """None: texts of any length are read whole."""
        return

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Kiwi's morphemes of each text."""
        return [len(tokens) for tokens in self._kiwi.tokenize(iter(texts))]

    def get_config_dict(self) -> dict[str, Any]:
        return {KIWI_MODEL_KEY: self._kiwi_model, "embedding_dimension": self.get_embedding_dimension()}

    def save(self, output_path: str, *_: Any, **__: Any) -> None:
        """Writes `config.json` and `model.safetensors` into the existing folder `output_path`."""
        folder = Path(output_path)
        (folder / CONFIG_FILE).write_text(json.dumps(self.get_config_dict(), indent=2), encoding="utf-8")
        save_file({WEIGHTS_NAME: self.embedding.weight.detach().cpu().contiguous()}, folder / WEIGHTS_FILE)

    @classmethod
    def load(  # type: ignore[override]  # the library passes all but the first by name
        cls, model_name_or_path: str, *, subfolder: str = "", **options: Any
    ) -> KiwiStaticModule:
        """The module saved in a folder or hub repository, on a new Kiwi without user words.

        Raises EncoderFailed where the running Kiwi has another model than the saved one.
        """
        hub: dict[str, Any] = {name: options[name] for name in _HUB_OPTIONS if name in options}
        config = cls.load_config(model_name_or_path, subfolder=subfolder, **hub)
        check_kiwi_model(config, model_name_or_path)
        weights = cls.load_torch_weights(model_name_or_path, subfolder=subfolder, **hub)
        if WEIGHTS_NAME not in weights:
            raise EncoderFailed(f"{model_name_or_path} has no {WEIGHTS_NAME!r} in its weights", "save the model again")
        return cls(Analyser.open().kiwi, weights[WEIGHTS_NAME].float(), config[KIWI_MODEL_KEY])
