"""Made-up chat rows for benchmarks: about 1 kB each, words with natural frequencies, several scripts.

Knows: how to write any number of rows that look like a support chat data set, the same for the same seed.
Does not know: what is measured with them.
"""

from __future__ import annotations

import json
import random
from itertools import accumulate
from pathlib import Path

_FREQUENT = """
    the of and to in a is that for it as was with be by on not he his but at are this have from or had an they which
    one you were all her she there would their we him been has when who will no more if out so up said what its about
    than into them can only other time new some could these two may first then do any like my now over such our man
    me even most made after also well did many before must years where much your way should down because long each
    just those people too good very make world still see own work men day get here between both under never same use
"""
_STEMS = """
    account adapt address alarm annual answer archive balance basket battery bill board bright build button cable
    camera cancel card carrier chair charge check clean client code collect color comfort common complete computer
    confirm connect content contract correct cost courier credit custom damage data date deliver depart deposit
    design detail device differ direct discount display document double draft drive early electric email engine
    enter error event exact expect export express factor fashion fast favor figure filter final finish fix flight
    format forward frame friend garden gather general glass global group guard guide handle harbor health help hold
    hotel house image import improve include increase inform install insure interest invoice issue item join key
    label language late launch leather letter level library light limit list load local lock loan machine mail manage
    market measure memory message meter method minute mobile model modern monitor motor mount music nation nature
    network normal note notice number object offer office open option order organ pack page paint panel paper parcel
    part pass path pattern pay period person phone photo picture place plan plant platform plate point policy port
    post power present press price print private problem process product profile program project protect provide
    public purchase quality question quick quiet radio range rate reach reason receipt record refund register
    regular relate remote repair replace report request reserve reset result return review reward ring river room
    route safe sale sample scale scan screen seal search season secure select sender serial service session set shelf
    shift ship shop sign signal simple size smart sound source spare speed stage standard start state station status
    stock store stream street strong student subject submit support surface switch system table tablet target tax
    team term test text theme ticket tool total touch track trade train transfer travel treat trial type unit update
    upgrade use user value vehicle version video view visit voice wait wall warm water web week weight window wire
    wireless wood word write yard zone
"""
_ENDINGS = ["", "s", "ed", "ing", "er", "ers", "able", "ment", "ly", "ness", "ation", "ful", "less", "ize", "ity"]
_BEGINNINGS = ["", "re", "un", "pre", "over", "multi", "non-"]
_SCRIPTS = {
    "de": "der die das Straße Größe Bestellung Rechnung Käse schön für nicht können müssen Lieferung Tür übermorgen Öl",
    "fr": "le la les déjà reçu colis élève où être très année français société problème réponse équipe façon œuvre",
    "ru": "и в не на что заказ посылка ответ вопрос адрес время можно нужно почта оплата возврат сегодня доставка",
    "ja": "注文 配送 返金 お問い合わせ 商品 確認 届きました ありがとうございます 住所 変更 電池 画面 不具合 領収書",
    "zh": "订单 退款 您好 快递 地址 已经 没有 收到 请问 什么时候 发票 电池 屏幕 质量 客服 联系 我们 处理 问题",
    "ar": "الطلب الشحنة السلام عليكم العنوان متى تصل استرداد المبلغ شكرا جزيلا الفاتورة مشكلة الدفع حساب",
    "hi": "ऑर्डर पैकेज नमस्ते पता कब मिलेगा रिफंड धन्यवाद समस्या भुगतान खाता बिल कृपया सहायता उत्पाद",
    "emoji": "🙂 thanks 👍🏽 ❤️ great 🎉 👩‍👩‍👧 sorry 😢 🚚 parcel 📦 ✅ done naïve café",
}
_MARKS = [" "] * 60 + [", "] * 5 + [". "] * 5 + ["\n", "\n\n", ": ", " - ", "? ", "! ", '" "', " (", ") "]
_SYSTEM = "You are the friendly support agent of a shop. Answer briefly."


class Rows:
    """An endless source of rows. Word frequencies fall as rank**-1.2 over some 40,000 words; lengths are lognormal."""

    def __init__(self, seed: int = 0) -> None:
        self._draw = random.Random(seed)
        stems = self._draw.sample(_STEMS.split(), len(_STEMS.split()))
        made = [f"{begin}{stem}{end}" for begin in _BEGINNINGS for end in _ENDINGS for stem in stems]
        names = [word.capitalize() for word in self._draw.sample(made[: 3 * len(stems)], 800)]
        codes = [f"{self._draw.choice('ABCX')}{self._draw.randrange(10**5)}" for _ in range(3000)]
        self._words = list(dict.fromkeys([*_FREQUENT.split(), *made[: 3 * len(stems)], *names, *made, *codes]))
        self._weights = list(accumulate((rank + 3) ** -1.2 for rank in range(len(self._words))))
        self._scripts = [text.split() for text in _SCRIPTS.values()]

    def row(self, number: int) -> dict[str, object]:
        """{"messages": ...} with two to four turns and maybe a system message before them."""
        draw = self._draw
        foreign = draw.choice(self._scripts) if draw.random() < 0.1 else None
        size = max(8, min(2000, int(draw.lognormvariate(4.77, 0.6))))  # words; the mean row is about 1 kB of JSON
        turns = draw.choice((2, 2, 2, 4, 4))
        messages = [{"role": "system", "content": _SYSTEM}] if draw.random() < 0.2 else []
        for turn in range(turns):
            role = "assistant" if turn % 2 else "user"
            text = self.text(max(3, size * (3 if turn % 2 else 2) // (5 * turns // 2)), foreign)
            messages.append({"role": role, "content": text})
        return {"messages": messages}

    def text(self, size: int, foreign: list[str] | None) -> str:
        draw = self._draw
        words = draw.choices(self._words, cum_weights=self._weights, k=size)
        if foreign:
            words[::2] = draw.choices(foreign, k=len(words[::2]))
        for place in range(draw.randrange(40), size, 40):
            words[place] = f"{draw.randrange(10**4)}.{draw.randrange(100):02}"
        marks = draw.choices(_MARKS, k=size)
        text = "".join(part for pair in zip(words, marks, strict=True) for part in pair).strip()
        return text[:1].upper() + text[1:]


def write(path: Path, rows: int, seed: int = 0) -> None:
    """`rows` rows as JSON lines in UTF-8."""
    source = Rows(seed)
    with path.open("w", encoding="utf-8", newline="\n") as stream:
        for number in range(rows):
            stream.write(json.dumps(source.row(number), ensure_ascii=False) + "\n")
