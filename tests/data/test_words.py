"""Ids by known words are the tokenizer's own, for every kind of tokenizer that they are used with."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from peftsmith.data.words import Words

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
QWEN35 = QWEN2.replace(r"\p{L}+", r"[\p{L}\p{M}]+").replace(r"[^\s\p{L}\p{N}]", r"[^\s\p{L}\p{M}\p{N}]")
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def split(pattern):
    return pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(pattern), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip


CUTS = {
    "gpt2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "digits": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    "llama3": split(LLAMA3),
    "qwen2": split(QWEN2),
    "qwen3.5": split(QWEN35),
    "o200k": split(O200K),
}
TEXTS = ["the cat's hat isn't on 1234 mats", "  def f(x):\n\treturn x*2  # twice\n\n", "HELLO World, I'LL be there!!"]
ADDED = ["<|im_start|>", "<|im_end|>", "<|im", "[INST]"]


def tokenizer_of(cut):
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = cut
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        TEXTS * 20, trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    )
    made.add_special_tokens(ADDED)
    return made


MADE = {name: tokenizer_of(cut) for name, cut in CUTS.items()}
WORDS = {name: Words.of(made) for name, made in MADE.items()}
ASCII = st.characters(codec="ascii")
PIECES = st.one_of(
    st.text(ASCII, max_size=12),
    st.sampled_from([*ADDED, *TEXTS, " ", "  ", "\n", "\r\n", "\x1c", "\x0b", "7", " 42", "'S", "'ll", "\t\t3"]),
)


@given(st.sampled_from(sorted(MADE)), st.lists(PIECES, max_size=12).map("".join))
def test_ids_and_places_equal_the_tokenizers(name, text):
    words = WORDS[name]
    assert words is not None
    found, real = words.encode(text), MADE[name].encode(text, add_special_tokens=False)
    assert found is not None and found.ids == real.ids
    for char, (place, end) in found.marks.items():
        assert real.char_to_token(char) == found.char_to_token(char) == place
        assert real.token_to_chars(place) == found.token_to_chars(place) == (char, end)


def test_the_demo_models_tokenizer_is_known_and_equal(smollm2):
    made = Tokenizer.from_file(str(smollm2 / "tokenizer.json"))
    words = Words.of(made)
    assert words is not None
    for text in [*TEXTS, "<|im_start|>user\nIn 1999  7 times\n<|im_end|>\n", "".join(map(chr, range(128)))]:
        found = words.encode(text)
        assert found is not None and found.ids == made.encode(text, add_special_tokens=False).ids


def test_other_text_and_other_tokenizers_are_left_alone():
    assert WORDS["gpt2"].encode("na\u00efve") is None

    def changed(change):
        made = tokenizer_of(CUTS["gpt2"])
        change(made)
        return made

    def add(made, **how):
        made.add_tokens([AddedToken("<x>", **how)])

    others = [
        changed(lambda made: setattr(made, "normalizer", normalizers.Lowercase())),
        changed(lambda made: setattr(made, "pre_tokenizer", pre_tokenizers.Whitespace())),
        changed(lambda made: setattr(made, "pre_tokenizer", None)),
        changed(lambda made: setattr(made, "pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=True))),
        changed(lambda made: setattr(made, "pre_tokenizer", split(r"\p{Han}+|\X"))),
        changed(lambda made: made.enable_truncation(8)),
        changed(lambda made: made.enable_padding()),
        changed(lambda made: add(made, lstrip=True)),
        changed(lambda made: add(made, single_word=True)),
        changed(lambda made: add(made, normalized=True)),
        Tokenizer(models.WordLevel({"a": 0}, unk_token="a")),
    ]
    assert [Words.of(made) for made in others] == [None] * len(others)


@pytest.mark.parametrize("dropout", [0.1])
def test_a_tokenizer_that_draws_is_left_alone(dropout):
    document = json.loads(MADE["gpt2"].to_str())
    document["model"]["dropout"] = dropout
    assert Words.of(Tokenizer.from_str(json.dumps(document))) is None
