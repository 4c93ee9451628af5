"""kiwi-static: its table against Kiwi's own cosines, its vectors against the formula written out, pinned values."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kiwipiepy import Kiwi
from numpy.typing import NDArray

from pipeline.encoding import kiwi_table
from pipeline.encoding.content import CONTENT_TAGS, ContentReader
from pipeline.encoding.encoder import FloatArray, MorphemeEncoder
from pipeline.encoding.kiwi_static import KiwiStaticEncoder, unknown_vectors
from pipeline.encoding.kiwi_table import (
    MorphemeTable,
    landmark_cosines,
    recovered_vectors,
    vocabulary_size,
    without_common_directions,
)
from pipeline.encoding.word_probabilities import (
    count_probabilities,
    default_probabilities,
    packed,
    probabilities_of_counts,
    unpacked,
)
from pipeline.errors import EncoderFailed, InvalidInput, InvalidSetting

TEXTS = [
    "전세자금대출은 무주택 세대주가 신청할 수 있다.",
    "친구한테 돈 부치기",
    "ISA 계좌로 500만원을 송금했다.",
    "뷁뚫 ZZTOP 大出",
    "",
    "!!! ... ?",
    "그리고 또는",
    "오늘 저녁에는 비가 오고 바람이 세게 분다. 내일은 맑겠다.",
]
SHARED = Path(os.environ.get("YEOUL_SHARED_DATA", "../shared/data"))


@pytest.fixture(scope="module")
def kiwi() -> Kiwi:
    return Kiwi()


@pytest.fixture(scope="module")
def cosines(kiwi: Kiwi) -> NDArray[np.float64]:
    """A, derived once for this file (5 s)."""
    return landmark_cosines(kiwi, vocabulary_size(kiwi))


@pytest.fixture(scope="module")
def recovered(cosines: NDArray[np.float64]) -> NDArray[np.float64]:
    return recovered_vectors(cosines)


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def table(kiwi: Kiwi, cache_dir: Path, cosines: NDArray[np.float64]) -> MorphemeTable:
    """Derived and kept, with the cosines that are asked of Kiwi once for this file."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(kiwi_table, "landmark_cosines", lambda *_, **__: cosines)
        return MorphemeTable.open(kiwi, cache_dir=cache_dir)


@pytest.fixture(scope="module")
def encoder(kiwi: Kiwi, table: MorphemeTable) -> KiwiStaticEncoder:
    return KiwiStaticEncoder(kiwi, table, default_probabilities(table.version))


@pytest.fixture
def counted_derivations(monkeypatch: pytest.MonkeyPatch, table: MorphemeTable) -> list[Kiwi]:
    """Derivations from here on are counted, and answered with the table derived before: each takes 8 s."""
    calls: list[Kiwi] = []

    def derived(kiwi: Kiwi, *, progress: bool = False) -> MorphemeTable:
        assert not progress
        calls.append(kiwi)
        return table

    monkeypatch.setattr(kiwi_table, "derive_table", derived)
    return calls


# The table


def test_recovered_vectors_have_kiwis_cosines(kiwi: Kiwi, recovered: NDArray[np.float64]) -> None:
    assert np.abs(np.linalg.norm(recovered, axis=1) - 1).max() < 1e-3
    pairs = np.random.default_rng(1).integers(0, len(recovered), (5_000, 2))
    own = np.array([kiwi.morpheme_similarity(int(a), int(b)) for a, b in pairs])
    np.testing.assert_allclose(np.sum(recovered[pairs[:, 0]] * recovered[pairs[:, 1]], axis=1), own, atol=1e-5)


def test_noise_of_another_processor_does_not_turn_the_vectors(
    kiwi: Kiwi, table: MorphemeTable, cosines: NDArray[np.float64]
) -> None:
    noise = np.random.default_rng(2).uniform(-1e-7, 1e-7, cosines.shape)
    noisy = without_common_directions(recovered_vectors(cosines + noise), _content_rows(kiwi, cosines))
    assert np.abs(noisy - table.vectors).max() < 1e-3
    assert np.sum(noisy * table.vectors, axis=1).min() > 0.99999


def test_common_directions_of_the_content_are_gone(
    kiwi: Kiwi, table: MorphemeTable, recovered: NDArray[np.float64]
) -> None:
    content = _content_rows(kiwi, recovered)
    assert np.linalg.norm(recovered[content].mean(axis=0)) > 0.8  # what is removed
    assert np.linalg.norm(table.vectors[content].mean(axis=0)) < 0.05
    np.testing.assert_allclose(np.linalg.norm(table.vectors, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(table.vectors, without_common_directions(recovered, content), atol=1e-4)


def _content_rows(kiwi: Kiwi, table: NDArray[np.float64]) -> NDArray[np.bool_]:
    return ContentReader(kiwi, len(table)).is_row


def test_a_table_of_another_rank_is_refused(cosines: NDArray[np.float64]) -> None:
    with pytest.raises(EncoderFailed, match="kiwipiepy_model"):
        recovered_vectors(cosines * 0.9 + 0.01 * np.random.default_rng(3).normal(size=cosines.shape))
    with pytest.raises(EncoderFailed, match="another rank"):
        recovered_vectors(np.zeros_like(cosines))


def test_second_open_maps_the_cached_file(
    kiwi: Kiwi, table: MorphemeTable, cache_dir: Path, counted_derivations: list[Kiwi]
) -> None:
    again = MorphemeTable.open(kiwi, cache_dir=cache_dir)
    assert counted_derivations == []
    assert isinstance(again.vectors, np.memmap)
    assert np.array_equal(again.vectors, table.vectors)
    assert [path.suffix for path in cache_dir.iterdir()] == [".safetensors"]


@pytest.mark.parametrize("damage", ["one byte", "cut", "empty", "another file"])
def test_a_damaged_cache_is_derived_anew(
    kiwi: Kiwi, table: MorphemeTable, tmp_path: Path, counted_derivations: list[Kiwi], damage: str
) -> None:
    MorphemeTable.open(kiwi, cache_dir=tmp_path)
    [path] = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    damaged = {"one byte": bytes(content), "cut": bytes(content[:-9]), "empty": b"", "another file": b"{}" * 99}
    path.write_bytes(damaged[damage])
    assert np.array_equal(MorphemeTable.open(kiwi, cache_dir=tmp_path).vectors, table.vectors)
    assert len(counted_derivations) == 2
    MorphemeTable.open(kiwi, cache_dir=tmp_path)
    assert len(counted_derivations) == 2


def test_a_folder_that_cannot_be_written_is_said_and_survived(
    kiwi: Kiwi,
    table: MorphemeTable,
    tmp_path: Path,
    counted_derivations: list[Kiwi],
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "file").write_text("in the way")
    opened = MorphemeTable.open(kiwi, cache_dir=tmp_path / "file")
    assert np.array_equal(opened.vectors, table.vectors)
    assert len(counted_derivations) == 1
    assert "cannot be cached" in caplog.text


def test_openings_at_the_same_time_leave_one_whole_file(
    kiwi: Kiwi, table: MorphemeTable, tmp_path: Path, counted_derivations: list[Kiwi]
) -> None:
    opened: list[MorphemeTable] = []
    threads = [
        threading.Thread(target=lambda: opened.append(MorphemeTable.open(kiwi, cache_dir=tmp_path))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(opened) == 4
    assert all(np.array_equal(one.vectors, table.vectors) for one in opened)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_kiwi_model_without_these_embeddings_names_the_setting(tmp_path: Path) -> None:
    with pytest.raises(InvalidSetting, match=r"encoder\.model.*cong-global") as caught:
        KiwiStaticEncoder.open(Kiwi(model_type="cong-global"), cache_dir=tmp_path)
    assert "YEOUL_ENCODER__MODEL" in caught.value.hint


# The vectors


def _written_out(kiwi: Kiwi, encoder: KiwiStaticEncoder, text: str) -> FloatArray:
    """The encoding of one text as the formula says, morpheme by morpheme."""
    total = np.zeros(encoder.dim)
    for token in kiwi.tokenize(text):
        if not token.tag.startswith(CONTENT_TAGS):
            continue
        if token.id < len(encoder.table.vectors) and kiwi.morpheme(token.id).form:
            total += encoder.table.vectors[token.id] * (3e-4 / (3e-4 + float(encoder.probabilities[token.id])))
        else:
            total += unknown_vectors([token.form.lower()], encoder.dim)[0]
    length = np.linalg.norm(total)
    return (total / length if length else total).astype(np.float32)


def test_vectors_are_the_formula(kiwi: Kiwi, encoder: KiwiStaticEncoder) -> None:
    expected = np.stack([_written_out(kiwi, encoder, text) for text in TEXTS])
    np.testing.assert_allclose(encoder.encode_passages(TEXTS), expected, atol=1e-5)


def test_rows_are_float32_of_length_1_or_0(encoder: KiwiStaticEncoder) -> None:
    vectors = encoder.encode_queries(TEXTS)
    assert vectors.dtype == np.float32
    assert vectors.shape == (len(TEXTS), encoder.dim) == (len(TEXTS), 256)
    without_content = [4, 5]
    assert not vectors[without_content].any()
    np.testing.assert_allclose(np.linalg.norm(np.delete(vectors, without_content, axis=0), axis=1), 1, atol=1e-6)
    assert encoder.encode_queries([]).shape == (0, 256)


def test_a_vector_does_not_depend_on_its_batch(encoder: KiwiStaticEncoder) -> None:
    many = TEXTS * 80  # several inner batches
    together = encoder.encode_passages(many)
    alone = np.concatenate([encoder.encode_passages([text]) for text in TEXTS])
    assert np.array_equal(together, np.tile(alone, (80, 1)))


def test_queries_passages_and_analysed_texts_agree(kiwi: Kiwi, encoder: KiwiStaticEncoder) -> None:
    assert isinstance(encoder, MorphemeEncoder)
    analysed = encoder.encode_morphemes([kiwi.tokenize(text) for text in TEXTS])
    assert np.array_equal(encoder.encode_queries(TEXTS), analysed)
    assert np.array_equal(encoder.encode_passages(TEXTS), analysed)
    assert encoder.count_tokens(TEXTS) == [len(kiwi.tokenize(text)) for text in TEXTS]
    assert encoder.max_tokens is None


def test_canonical_vectors(encoder: KiwiStaticEncoder) -> None:
    pinned = [
        [-0.07437, 0.00050, 0.07176, -0.06594, -0.01949],
        [0.04062, -0.09209, -0.05569, -0.07075, -0.02955],
        [-0.00642, -0.00784, 0.05098, -0.02685, -0.00091],
        [0.14732, -0.03993, -0.00177, 0.01376, 0.00034],
    ]
    assert encoder.id == "kiwi-static:0.24.0:73a72f7b4942:6a312629"
    np.testing.assert_allclose(encoder.encode_queries(TEXTS[:4])[:, [0, 1, 7, 100, 255]], pinned, atol=1e-3)


def test_user_words_and_unknown_names_are_read_by_their_form(encoder: KiwiStaticEncoder, table: MorphemeTable) -> None:
    kiwi = Kiwi()
    kiwi.add_user_word("여울톡", "NNP")
    [vector] = KiwiStaticEncoder(kiwi, table, encoder.probabilities).encode_queries(["여울톡"])
    np.testing.assert_allclose(vector, unknown_vectors(["여울톡"], 256)[0], atol=1e-6)


def test_numbers_and_latin_are_told_apart(encoder: KiwiStaticEncoder) -> None:
    isa, isa_lower, irp, n500, n501 = encoder.encode_queries(["ISA", "isa", "IRP", "500", "701"])
    assert isa @ isa_lower > 0.999
    assert abs(isa @ irp) < 0.5
    assert abs(n500 @ n501) < 0.6


@given(st.text(min_size=1, max_size=12), st.sampled_from([1, 8, 256, 700]))
def test_unknown_forms_get_fixed_unit_vectors(form: str, dim: int) -> None:
    [vector] = unknown_vectors([form], dim)
    assert vector.shape == (dim,)
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5) or not vector.any()
    assert np.array_equal(vector, unknown_vectors(["다른", form], dim)[1])


def test_similar_unknown_forms_are_nearer() -> None:
    forms = ["여울페이", "여울페이먼츠", "바람머니"]
    a, b, c = unknown_vectors(forms, 256)
    assert a @ b > 0.4
    assert abs(a @ c) < 0.2


def test_neighbours_mean_the_same(kiwi: Kiwi, encoder: KiwiStaticEncoder) -> None:
    nouns = ["송금", "대출", "이자", "입금", "이체", "융자", "금리", "날씨", "음악", "축구"]
    similar = encoder.encode_terms([[noun] for noun in nouns])
    nearest = {
        noun: {nouns[other] for other in np.argsort(-row)[1:3]}
        for noun, row in zip(nouns[:3], similar @ similar.T, strict=False)
    }
    assert nearest["송금"] == {"입금", "이체"}
    assert "융자" in nearest["대출"]
    assert "금리" in nearest["이자"]


def test_a_way_to_say_it_finds_the_service(encoder: KiwiStaticEncoder) -> None:
    hints = encoder.encode_passages(["돈 보내기", "돈 빌리기", "내 신용 등급 확인"])
    asked = encoder.encode_queries(["친구한테 돈 부치기", "돈 빌릴 수 있는 곳", "내 신용등급", "오늘 저녁 메뉴"])
    scores = asked @ hints.T
    assert scores[:3].argmax(axis=1).tolist() == [0, 1, 2]
    assert scores[:3].max(axis=1).min() > 0.4
    assert scores[3].max() < 0.2


def test_terms_give_nearly_the_vector_of_the_text(kiwi: Kiwi, encoder: KiwiStaticEncoder) -> None:
    texts = [TEXTS[0], TEXTS[2], TEXTS[3], TEXTS[7]]
    terms = [
        [token.form.lower() for token in kiwi.tokenize(text) if token.tag.startswith(CONTENT_TAGS)] for text in texts
    ]
    similar = np.sum(encoder.encode_terms(terms) * encoder.encode_passages(texts), axis=1)
    assert similar.min() > 0.75  # homographs: 오 of 오다 is also the number five
    assert not encoder.encode_terms([[]]).any()
    assert encoder.encode_terms([]).shape == (0, 256)


def test_a_lone_surrogate_is_an_error_that_says_so(encoder: KiwiStaticEncoder) -> None:
    with pytest.raises(EncoderFailed, match="surrogate"):
        encoder.encode_queries(["가\ud800"])


def test_weighted_vectors_are_vectors_times_weights_on_content(kiwi: Kiwi, encoder: KiwiStaticEncoder) -> None:
    weighted = encoder.weighted_vectors
    [content] = kiwi.tokenize("송금")
    weight = 3e-4 / (3e-4 + encoder.probabilities[content.id])
    np.testing.assert_allclose(weighted[content.id], encoder.table.vectors[content.id] * weight, atol=1e-6)
    particle = next(token for token in kiwi.tokenize("학교에 간다") if token.form == "에")
    assert not weighted[particle.id].any()


# The word probabilities


def test_probabilities_are_shares_of_content_morphemes(kiwi: Kiwi) -> None:
    counted = count_probabilities(kiwi, ["송금 송금 이체", "은행에서 송금", "ISA 500 ?!"])
    by_form = {kiwi.morpheme(int(number)).form: counted[number] for number in np.flatnonzero(counted)}
    assert by_form == pytest.approx({"송금": 0.6, "이체": 0.2, "은행": 0.2})
    assert not count_probabilities(kiwi, []).any()


def test_shipped_probabilities_are_a_distribution_of_content(kiwi: Kiwi, encoder: KiwiStaticEncoder) -> None:
    shipped = encoder.probabilities
    assert shipped.sum() == pytest.approx(1, abs=0.01)
    content = [number for number in range(len(shipped)) if kiwi.morpheme(number).tag.startswith(CONTENT_TAGS)]
    assert shipped[content].sum() == pytest.approx(float(shipped.sum()), abs=1e-6)


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=50))
def test_packing_keeps_probabilities_to_4_percent(counts: list[int]) -> None:
    exact = probabilities_of_counts(np.array(counts))
    np.testing.assert_allclose(unpacked(packed(exact)), exact, rtol=0.04)


def test_probabilities_of_another_kiwi_model_are_refused(kiwi: Kiwi, table: MorphemeTable) -> None:
    with pytest.raises(EncoderFailed, match=r"9\.9\.9"):
        default_probabilities("9.9.9")
    with pytest.raises(InvalidInput, match="shape"):
        KiwiStaticEncoder(kiwi, table, np.zeros(7, dtype=np.float32))


def test_id_names_table_and_probabilities(kiwi: Kiwi, table: MorphemeTable, encoder: KiwiStaticEncoder) -> None:
    other = KiwiStaticEncoder(kiwi, table, np.zeros(len(table.vectors), dtype=np.float32))
    assert other.id != encoder.id
    assert other.id.rsplit(":", 1)[0] == encoder.id.rsplit(":", 1)[0]
    assert KiwiStaticEncoder(kiwi, table, encoder.probabilities.copy()).id == encoder.id


# The whole


def test_kiwi_static_loads_neither_torch_nor_sentence_transformers(cache_dir: Path, table: MorphemeTable) -> None:
    program = (
        "import sys; from pathlib import Path; from kiwipiepy import Kiwi\n"
        "from pipeline.encoding.opening import open_encoder\n"
        f"open_encoder('kiwi-static', Kiwi(), cache_dir=Path({str(cache_dir)!r})).encode_queries(['송금'])\n"
        "print([name for name in ('torch', 'transformers', 'sentence_transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=600)
    assert done.stdout.strip() == "[]"


@pytest.mark.shared
@pytest.mark.parametrize(("name", "at_least"), [("klue-sts", 0.60), ("korsts", 0.70)])
def test_agrees_with_human_similarity(encoder: KiwiStaticEncoder, name: str, at_least: float) -> None:
    path = SHARED / "dev" / "sts" / f"{name}.tsv"
    if not path.exists():
        pytest.skip(f"{path} is absent: set YEOUL_SHARED_DATA to the development data")
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()[1:]]
    ours = np.sum(encoder.encode_queries([r[0] for r in rows]) * encoder.encode_passages([r[1] for r in rows]), axis=1)
    assert _spearman(ours, np.array([float(r[2]) for r in rows])) >= at_least


def _spearman(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    """Correlation of the ranks, equal values sharing their mean rank."""

    def ranks(values: NDArray[np.floating]) -> NDArray[np.floating]:
        _, group, sizes = np.unique(values, return_inverse=True, return_counts=True)
        mean_ranks: NDArray[np.floating] = (np.cumsum(sizes) - (sizes - 1) / 2)[group]
        return mean_ranks

    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])
