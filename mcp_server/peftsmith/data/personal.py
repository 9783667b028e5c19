"""Personal data in text: numbers and addresses that belong to one person, in the forms of several countries.

Knows: e-mail, phone, bank, card, tax and identity numbers, and their check digits.
Does not know: names and postal addresses, which no pattern finds without many false alarms.

Only the kinds are ever given out, never the values. A number without check digits counts only in a form that nothing
else has, or beside a word that names it.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Iterator

_Number = tuple[str, re.Pattern[str], Callable[[re.Match[str]], bool]]
# Only near these can any number below stand.
_LONG_NUMBER = re.compile(r"\d(?:[ .()/-]{0,2}\d){7}")
_DIGIT_AND_LETTER = re.compile(r"\d[ -]?[A-Z](?![A-Za-z0-9])")
_BEFORE, _BEHIND = 44, 24
# For a first look, many times as fast as a pattern: every digit as 0, every capital as A, the rest as themselves.
_SHAPE = bytes(48 if 48 <= each < 58 else 65 if 65 <= each < 91 else each for each in range(256))
_BETWEEN_DIGITS = b" .()/-"
_EMAIL = re.compile(r"(?<![\w.+-])([A-Za-z0-9._%+-]{1,64})@((?:[A-Za-z0-9-]{1,63}\.){1,5}[A-Za-z]{2,24})\b")
_NOBODY = re.compile(
    r"(?:info|support|contact|sales|admin|help|service|hello|press|team|office|noreply|no-reply|postmaster|webmaster"
    r"|kontakt|kundenservice|kundendienst|git|user|username|name|you|your\.?name|email|someone|mail|abuse|security)",
    re.IGNORECASE,
)
_NOWHERE = re.compile(
    r"(?:.*\.)?(?:example|test|invalid|localhost|domain|email|company|yourdomain)\.\w+", re.IGNORECASE
)
_IBAN = re.compile(r"(?<![A-Za-z0-9])([A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?)(?![A-Za-z0-9])")
_IBAN_SIZES = {
    "AD": 24, "AT": 20, "BE": 16, "BG": 22, "CH": 21, "CY": 28, "CZ": 24, "DE": 22, "DK": 18, "EE": 20, "ES": 24,
    "FI": 18, "FR": 27, "GB": 22, "GR": 27, "HR": 21, "HU": 28, "IE": 22, "IS": 26, "IT": 27, "LI": 21, "LT": 20,
    "LU": 20, "LV": 21, "MC": 27, "MT": 31, "NL": 18, "NO": 15, "PL": 28, "PT": 25, "RO": 24, "SA": 24, "SE": 24,
    "SI": 19, "SK": 24, "SM": 27, "TR": 26, "AE": 23, "UA": 29,
}  # fmt: skip
_CARD = re.compile(
    r"(?<![\d.,-])(?:\d{4}[ -]){3}\d{4}(?![\d-])|(?<![\d.,-])\d{4}[ -]\d{6}[ -]\d{5}(?![\d-])"
    r"|(?<![\w.,-])\d{15,16}(?![\w-]|[.,]\d)"
)
_CARD_START = re.compile(
    r"4\d{15}|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}|3[47]\d{13}|6(?:011|5\d\d)\d{12}"
)
_SSN = re.compile(r"(?<![\d-])(?!000|666|9\d\d)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\d-])")
_PHONES = re.compile(
    r"(?<![\w+./=-])\+[1-9]\d{0,2}(?:[ .-]?\(?\d{1,5}\)?){2,6}(?![\w.]*\d)"  # +49 30 1234567
    r"|(?<![\w(])\([2-9]\d{2}\) ?[2-9]\d{2}-\d{4}(?!\d)"  # (212) 555-1234
    r"|(?<![\d./-])[2-9]\d{2}([-.])[2-9]\d{2}\1\d{4}(?![\d.-]*\d)"  # 212-555-1234
    r"|(?<![\d./-])0[1-9](?:[ .]\d{2}){4}(?![\d. ]*\d)"  # French
    r"|(?<![\d./-])07\d{3} \d{3} ?\d{3}(?!\d)"  # British mobile
    r"|(?<![\d./-])0\d{2,4}[ /-]\d{3,4} ?\d{3,5}(?![\d./-])"  # German with area code
)
_PHONE_WORD = re.compile(
    r"tel|phone|call|mobile|handy|mobil|fon\b|t[ée]l[ée]|portable|m[óo]vil|cell|whatsapp|\bsms\b|ruf", re.IGNORECASE
)
_NIR = re.compile(r"(?<!\d)[12] ?\d{2} ?(?:0[1-9]|1[0-2]|[2-9]\d) ?(?:\d{2}|2[AB]) ?\d{3} ?\d{3} ?\d{2}(?!\d)")
_DNI = re.compile(r"(?<![\w-])(\d{8}|[XYZ]-?\d{7})-?([A-HJ-NP-TV-Z])(?![\w-])")
_FISCAL = re.compile(r"(?<!\w)[A-Z]{6}\d{2}[A-EHLMPRST]\d{2}[A-Z]\d{3}[A-Z](?!\w)")
_STEUER = re.compile(r"(?<![\d.,/-])[1-9]\d ?\d{3} ?\d{3} ?\d{3}(?![\d.,/-]*\d)")
_BSN = re.compile(r"(?<![\d.,/-])\d{9}(?![\d.,/-]*\d)")
_NINO = re.compile(
    r"(?<!\w)(?!BG|GB|NK|KN|TN|NT|ZZ)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z]( ?)\d{2}\1\d{2}\1\d{2}\1[A-D](?!\w)"
)
_TAX_WORD = re.compile(r"steuer|\bidnr|\btin\b|tax", re.IGNORECASE)
_BSN_WORD = re.compile(r"\bbsn\b|burgerservice|sofinummer", re.IGNORECASE)
_NINO_WORD = re.compile(r"\bni\b|nino\b|national insurance", re.IGNORECASE)
_IPV4 = re.compile(r"(?<![\w.-])(?:\d{1,3}\.){3}\d{1,3}(?![\w-]|\.\d)")
_VERSION_WORD = re.compile(r"(?:version|release|build|\bv|section|chapter|paragraph|kapitel)\W{0,3}$", re.IGNORECASE)
_NEAR = 40


def kinds(text: str) -> list[str]:
    """The kinds of personal data in `text`, each once, such as ["e-mail address", "IBAN"]."""
    return list(dict.fromkeys(_kinds(text)))


def may_hold_numbers(text: str) -> bool:
    """False for text without anything that `kinds` or `addresses` would look at more closely."""
    raw = text.encode("utf-8", "surrogatepass")
    close = raw.translate(_SHAPE, _BETWEEN_DIGITS)
    if b"00000000" in close or (b"000000A" in close and _DIGIT_AND_LETTER.search(text)):
        return True
    if b"000A" in close and _FISCAL.search(text):
        return True
    shape = raw.translate(_SHAPE)
    return b"0.0.0" in shape or b"0.00.0" in shape or b"0.000.0" in shape


def _kinds(text: str) -> Iterator[str]:
    if "@" in text and any(not (_NOBODY.fullmatch(who) or _NOWHERE.fullmatch(at)) for who, at in _EMAIL.findall(text)):
        yield "e-mail address"
    end = 0
    while place := _LONG_NUMBER.search(text, end):
        end = place.end()
        yield from _among(_NUMBERS, text, max(0, place.start() - _BEFORE), end + _BEHIND)
    if _DIGIT_AND_LETTER.search(text):
        yield from _among(_CODES, text, 0, len(text))


def _among(patterns: Iterable[_Number], text: str, start: int, end: int) -> Iterator[str]:
    for kind, pattern, accepts in patterns:
        if any(accepts(match) for match in pattern.finditer(text, start, end)):
            yield kind


def addresses(text: str) -> bool:
    """True when `text` holds an IP address of the open internet; 1.2.3.4 behind "version" is none."""
    for match in _IPV4.finditer(text):
        try:
            open_ = ipaddress.IPv4Address(match.group()).is_global
        except ValueError:
            continue
        if open_ and not _VERSION_WORD.search(text[max(0, match.start() - 12) : match.start()]):
            return True
    return False


def _digits(text: str) -> str:
    return "".join(c for c in text if c.isdigit())


def _near(match: re.Match[str], word: re.Pattern[str]) -> bool:
    return word.search(match.string[max(0, match.start() - _NEAR) : match.start()]) is not None


def _iban(match: re.Match[str]) -> bool:
    """ISO 13616: the country's length, and 1 as the rest of the division by 97."""
    value = match.group(1).replace(" ", "")
    size = _IBAN_SIZES.get(value[:2])
    if size is None or len(value) < size:
        return False
    value = value[:size]
    return int("".join(str(int(c, 36)) for c in value[4:] + value[:4])) % 97 == 1


def _card(match: re.Match[str]) -> bool:
    """The issuers' prefixes, and Luhn's check (ISO/IEC 7812-1)."""
    value = _digits(match.group())
    if not _CARD_START.fullmatch(value) or len(set(value)) < 2:
        return False
    doubled = (int(c) * (1 + place % 2) for place, c in enumerate(reversed(value)))
    return sum(n - 9 if n > 9 else n for n in doubled) % 10 == 0


def _phone(match: re.Match[str]) -> bool:
    """Eight to fifteen digits (ITU E.164); not the numbers kept for fiction (555-01xx) or counted up."""
    value = match.group()
    digits = _digits(value)
    if not 8 <= len(digits) <= 15 or "55501" in digits or "1234567890" in digits or "000000" in digits:
        return False
    if value.startswith("+"):
        return bool(re.search(r"[ .()-]", value)) or (11 <= len(digits) <= 13 and _near(match, _PHONE_WORD))
    return value.startswith("(") or match.group(1) is not None or _near(match, _PHONE_WORD) or value.count(" ") == 4


def _nir(match: re.Match[str]) -> bool:
    """The French key: 97 less the number's rest by 97; Corsica's letters count as 19 and 18."""
    value = match.group().replace(" ", "")
    number = value[:-2].replace("2A", "19").replace("2B", "18")
    return number.isdigit() and 97 - int(number) % 97 == int(value[-2:])


def _dni(match: re.Match[str]) -> bool:
    number = match.group(1).replace("-", "")
    number = number.replace("X", "0").replace("Y", "1").replace("Z", "2")
    return "TRWAGMYFPDXBNJZSQVHLCKE"[int(number) % 23] == match.group(2)


_ODD = dict(zip("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ", (
    1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22,
    25, 24, 23,
), strict=True))  # fmt: skip


def _fiscal(match: re.Match[str]) -> bool:
    """The control letter of decreto ministeriale 23/12/1976."""
    value = match.group()
    even = sum(int(c) if c.isdigit() else ord(c) - 65 for c in value[1:15:2])
    return chr(65 + (even + sum(_ODD[c] for c in value[0:15:2])) % 26) == value[15]


def _steuer(match: re.Match[str]) -> bool:
    """ISO 7064 MOD 11,10 over ten digits, of which one occurs two or three times; named as a tax number."""
    value = _digits(match.group())
    counts = sorted(value[:10].count(c) for c in set(value[:10]))
    if counts[-1] not in (2, 3) or not _near(match, _TAX_WORD):
        return False
    product = 10
    for c in value[:10]:
        total = (int(c) + product) % 10 or 10
        product = total * 2 % 11
    return (11 - product) % 10 == int(value[10])


def _bsn(match: re.Match[str]) -> bool:
    value = match.group()
    total = sum(int(c) * weight for c, weight in zip(value, (9, 8, 7, 6, 5, 4, 3, 2, -1), strict=True))
    return total % 11 == 0 and _near(match, _BSN_WORD)


_NUMBERS: tuple[_Number, ...] = (
    ("IBAN", _IBAN, _iban),
    ("payment card", _CARD, _card),
    ("US social security number", _SSN, lambda match: True),
    ("phone number", _PHONES, _phone),
    ("French social security number", _NIR, _nir),
    ("German tax number", _STEUER, _steuer),
    ("Dutch citizen number", _BSN, _bsn),
)
_CODES: tuple[_Number, ...] = (
    ("Spanish identity number", _DNI, _dni),
    ("Italian tax code", _FISCAL, _fiscal),
    ("British insurance number", _NINO, lambda match: bool(match.group(1)) or _near(match, _NINO_WORD)),
)
