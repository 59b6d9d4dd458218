"""Personal data that has a form.

Here: one finder for each family of forms. Not here: names, home addresses, dates of birth, driving licences, anything
that only its meaning gives away. To add a kind: a check in the family whose characters it shares, its name in
``config.PersonalKind``, and a line in the table of the recall test.

*Covered*: e-mail addresses (ASCII), IBANs (length of the country and checksum), payment cards (range of the issuer,
length and Luhn), IPv4 and IPv6 addresses, US social security numbers (valid areas; without dashes where the words
stand before it), telephone numbers (international, bracketed, North American, with leading zero; other groups of digits
where a word such as "call" stands before them), passport numbers (where the word stands before them). All forms are
found with wide digits, invisible characters and odd dashes in them. *Not covered*: internationalised e-mail addresses,
numbers spelled out as words, cards with more than one separator in a row.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable

from posttrain.guardrails.finders import ALLOWED, CONTEXT, Finder, Hit, settled_by_alphabet
from posttrain.guardrails.fold import fold

_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_DIGITS = "0123456789"


# --- e-mail ---------------------------------------------------------------------------------------------------------

_LOCAL_CHARACTERS = _LETTERS + _DIGITS + "._%+'-"
_LOCAL = 64
_LABEL = 40
_DOMAIN = re.compile(
    rf"@(?:[a-z0-9](?:[a-z0-9-]{{0,{_LABEL - 1}}})\.){{1,4}}[a-z]{{2,24}}(?![a-z0-9_-])", re.ASCII
)


class _Email:
    # One label more than the domain has, because the search looks at it before it falls back.
    reach = _LOCAL + 1 + 5 * (_LABEL + 1) + 26

    def search(self, text: str, start: int, limit: int) -> Hit | None:
        at = text.find("@", start)
        while at >= 0:
            # The at sign is looked for and the name is read backwards: a long run of letters costs nothing.
            before = text[max(start, at - _LOCAL) : at]
            first = at - len(before) + len(before.rstrip(_LOCAL_CHARACTERS))
            while first < at and text[first] in ".'-":
                first += 1
            if first >= limit:
                return None
            if first < at and (found := _DOMAIN.match(text, at)):
                return Hit(first, found.end(), "email")
            at = text.find("@", at + 1)
        return None

    def settled(self, text: str) -> int:
        return settled_by_alphabet(text, _LOCAL_CHARACTERS + "@", self.reach)


# --- digits ---------------------------------------------------------------------------------------------------------

_CARD = re.compile(
    r"(?:\d{4}[ -]?\d{4}[ -]?\d{4}[ -]?\d{1,7}|\d{4}[ -]\d{6}[ -]\d{4,5}|\d{13,19})(?!\d)", re.ASCII
)
_ISSUERS = (
    (re.compile(r"4"), (13, 16, 19)),
    (re.compile(r"5[1-5]|222[1-9]|22[3-9]|2[3-6]|27[01]|2720"), (16,)),
    (re.compile(r"3[47]"), (15,)),
    (re.compile(r"30|36|38"), (14,)),
    (re.compile(r"352[89]|35[3-8]"), (16,)),
    (re.compile(r"6011|62|64[4-9]|65"), (16, 17, 18, 19)),
    (re.compile(r"50|5[6-9]|6"), (13, 14, 15, 16, 17, 18, 19)),
)
_SSN = re.compile(r"(?!000|666|9)\d{3}([ -])(?!00)\d{2}\1(?!0000)\d{4}(?![\d-])", re.ASCII)
_SSN_PLAIN = re.compile(r"(?!000|666|9)\d{3}(?!00)\d{2}(?!0000)\d{4}(?!\d)", re.ASCII)
_SSN_FORM = re.compile(r"\d{3}-\d\d-\d{4}", re.ASCII)
_SSN_WORDS = re.compile(r"\bssn\b|social security")
_OCTET = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_IPV4 = re.compile(rf"{_OCTET}(?:\.{_OCTET}){{3}}(?!\d|\.\d)", re.ASCII)
_NOT_PERSONAL_IP = re.compile(r"127\.|0\.0\.0\.0|255\.255\.")
_PHONE = re.compile(
    r"[+(]{0,2}\d(?:[ .\-/()]{0,2}\d){5,16}(?:,? ?(?:x|ext\.?|#) ?\d{1,6})?(?![\d]|[-.]\d|[a-z_])", re.ASCII
)
_DATE = re.compile(r"(?:19|20)\d\d[-./ ]\d\d?[-./ ]\d\d?\D|\d\d?[-./ ]\d\d?[-./ ](?:19|20)\d\d\b", re.ASCII)
_NORTH_AMERICAN = re.compile(r"(?:\+?1[ .-]?)?\d{3}[ .-]\d{3}[ .-]\d{4}", re.ASCII)
_PHONE_WORDS = re.compile(
    r"\b(?:phone|telephone|tel|call|called|calling|answering at|mobile|cell|fax|whatsapp|sms|dial|hotline|"
    r"contact(?: me| us)?|reach (?:me|us|him|her)|ring|telefon|handy|numero|phone number)\b"
)


def luhn(digits: str) -> bool:
    """Whether the check digit at the end is right (ISO/IEC 7812-1); ``digits`` is ASCII digits only."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = ord(digit) - 48
        if place % 2:
            value += value - 9 if value > 4 else value
        total += value
    return bool(digits) and total % 10 == 0


def _card(text: str, start: int) -> int | None:
    found = _CARD.match(text, start)
    if found is None:
        return None
    digits = re.sub("[ -]", "", found[0])
    for issuer, lengths in _ISSUERS:
        if issuer.match(digits) and len(digits) in lengths:
            return found.end() if luhn(digits) else None
    return None


def _ssn(text: str, start: int) -> int | None:
    if text[start - 1 : start] == "-" and text[start - 2 : start - 1].isdigit():
        return None
    if found := _SSN.match(text, start):
        return found.end()
    found = _SSN_PLAIN.match(text, start)
    return found.end() if found and _SSN_WORDS.search(text, max(0, start - CONTEXT), start) else None


def _ipv4(text: str, start: int) -> int | None:
    if text[start - 1 : start] == "." and text[start - 2 : start - 1].isdigit():
        return None
    found = _IPV4.match(text, start)
    return found.end() if found and not _NOT_PERSONAL_IP.match(found[0]) else None


def _phone(text: str, start: int) -> int | None:
    found = _PHONE.match(text, start)
    if found is None or text[start - 1 : start] in ("-", ".", "/", "$", "€", "£", "#", "="):
        return None
    written = found[0]
    digits = sum(character.isdigit() for character in written.partition("x")[0])
    if not 7 <= digits <= 15 or _DATE.match(written + " ") or _SSN_FORM.fullmatch(written):
        return None
    sure = (
        (written.startswith(("+", "(+", "00")) and digits >= 8)
        or ("(" in written and ")" in written and digits <= 12)
        or _NORTH_AMERICAN.match(written)
        or ("x" in written and digits <= 13)
        or (written.startswith("0") and 9 <= digits <= 11 and "." not in written)
    )
    if sure or (digits <= 12 and _PHONE_WORDS.search(text, max(0, start - CONTEXT), start)):
        return found.end()
    return None


class _Numbers:
    """Cards, social security numbers, IPv4 addresses, telephone numbers: they begin with a digit or a bracket."""

    reach = 72
    _start = re.compile(r"(?<![0-9a-z_])[+(]{0,2}\d", re.ASCII)
    # Nothing of less than seven digits and separators is anything here: most numbers in prose stop at this.
    _worth = re.compile(r"[+(]{0,2}\d[\d .\-/()]{5}", re.ASCII)
    _alphabet = _DIGITS + " .-/()+,xet#"

    def __init__(self, kinds: Iterable[str]) -> None:
        checks: dict[str, Callable[[str, int], int | None]] = {
            "card": _card,
            "us_ssn": _ssn,
            "ip": _ipv4,
            "phone": _phone,
        }
        self._checks = [(kind, check) for kind, check in checks.items() if kind in set(kinds)]

    def search(self, text: str, start: int, limit: int) -> Hit | None:
        found = self._start.search(text, start)
        while found and (first := found.start()) < limit:
            if self._worth.match(text, first):
                for kind, check in self._checks:
                    end = check(text, first)
                    if end is not None:
                        return Hit(first, end, kind)
            found = self._start.search(text, first + 1)
        return None

    def settled(self, text: str) -> int:
        return settled_by_alphabet(text, self._alphabet, self.reach)


# --- letters and digits ---------------------------------------------------------------------------------------------

# Registry of ISO 13616: the length of an IBAN, and the countries where it is so long.
_IBAN_COUNTRIES = {
    15: "no", 16: "be", 18: "dk fo fi gl nl sd", 19: "mk si", 20: "at ba ee kz lt lu xk", 21: "cr hr lv li ch",
    22: "bg bh de gb ge ie me rs va", 23: "ae gi il iq om so tl", 24: "ad cz es md pk ro sa se sk tn vg",
    25: "ly pt st", 26: "is tr", 27: "bi dj fr gr it mc mr sm", 28: "al az by cy do gt hu lb ni pl sv",
    29: "br eg ps qa ua", 30: "jo kw mu", 31: "mt sc", 32: "lc", 33: "ru",
}  # fmt: skip
_IBAN_LENGTHS = {
    country: length for length, countries in _IBAN_COUNTRIES.items() for country in countries.split()
}
_IBAN_MAX = max(_IBAN_LENGTHS.values())


def iban(text: str) -> bool:
    """Whether ``text`` (no spaces) is an IBAN: known country, its length, check digits (ISO 7064 mod 97-10)."""
    text = text.lower()
    if _IBAN_LENGTHS.get(text[:2]) != len(text) or not (
        text.isascii() and text.isalnum() and text[2:4].isdigit()
    ):
        return False
    return int("".join(str(int(character, 36)) for character in text[4:] + text[:4])) % 97 == 1


_IBAN_FORMS = {
    length: re.compile(rf"[a-z]{{2}}\d{{2}}(?:[ -]?[a-z0-9]){{{length - 4}}}(?![a-z0-9])", re.ASCII)
    for length in _IBAN_COUNTRIES
}


class _Iban:
    reach = 2 * _IBAN_MAX + 2
    _start = re.compile(r"(?<![0-9a-z])[a-z]{2}\d{2}", re.ASCII)
    _open = re.compile(r"(?<![0-9a-z])(?:[a-z]{2}\d{2}|[a-z]{1,2}\d?\Z)", re.ASCII)

    def search(self, text: str, start: int, limit: int) -> Hit | None:
        found = self._start.search(text, start)
        while found and (first := found.start()) < limit:
            form = _IBAN_FORMS.get(_IBAN_LENGTHS.get(text[first : first + 2], 0))
            whole = form.match(text, first) if form else None
            if whole and iban(re.sub("[ -]", "", whole[0])):
                return Hit(first, whole.end(), "iban")
            found = self._start.search(text, first + 1)
        return None

    def settled(self, text: str) -> int:
        size = len(text)
        found = self._open.search(text, size - self.reach if size > self.reach else 0)
        return found.start() if found else size


class _Passport:
    reach = 12
    _start = re.compile(r"(?<![0-9a-z_])(?:[a-z]{1,2}\d{6,8}|\d{8,9})(?![0-9a-z_])", re.ASCII)
    _words = re.compile(r"\bpassports?\b|\breisepass\b|\bpasaporte\b|\bpasseport\b")
    _alphabet = _LETTERS + _DIGITS + "_"

    def search(self, text: str, start: int, limit: int) -> Hit | None:
        found = self._start.search(text, start)
        while found and (first := found.start()) < limit:
            if self._words.search(text, max(0, first - CONTEXT), first):
                return Hit(first, found.end(), "passport")
            found = self._start.search(text, first + 1)
        return None

    def settled(self, text: str) -> int:
        return settled_by_alphabet(text, self._alphabet, self.reach)


class _Ipv6:
    reach = 42
    _start = re.compile(r"(?<![0-9a-z_:.])[0-9a-f:]{0,4}:[0-9a-f:]{2,36}(?![0-9a-z_:])", re.ASCII)
    _alphabet = _DIGITS + "abcdef:"

    def search(self, text: str, start: int, limit: int) -> Hit | None:
        # A colon comes after at most four digits, so nothing starts further before it.
        colon = text.find(":", start)
        while colon >= 0:
            found = self._start.search(text, max(start, colon - 4))
            if found is None or found.start() >= limit:
                return None
            if _is_ipv6(found[0]):
                return Hit(found.start(), found.end(), "ip")
            start = found.start() + 1
            colon = text.find(":", start)
        return None

    def settled(self, text: str) -> int:
        return settled_by_alphabet(text, self._alphabet, self.reach)


def _is_ipv6(text: str) -> bool:
    # `std::map` and 12:30:45 have colons, too: at least three groups, and a digit among them.
    if sum(bool(group) for group in text.split(":")) < 3 or not any(
        character.isdigit() for character in text
    ):
        return False
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


class _Allowing:
    """A finder that hands on what is allowed as a hit of no kind, so that nothing else is found inside of it."""

    def __init__(self, finder: Finder, allow: Iterable[str]) -> None:
        folded = [fold(item.strip()) for item in allow]
        self._finder = finder
        self._values = frozenset(item for item in folded if not item.startswith("@"))
        self._domains = tuple(item for item in folded if item.startswith("@"))
        self.reach = finder.reach

    def search(self, text: str, start: int, limit: int) -> Hit | None:
        hit = self._finder.search(text, start, limit)
        if hit is not None:
            found = text[hit.start : hit.end]
            if found in self._values or found.endswith(self._domains):
                return hit._replace(kind=ALLOWED)
        return hit

    def settled(self, text: str) -> int:
        return self._finder.settled(text)


_FAMILIES: tuple[tuple[frozenset[str], Callable[[frozenset[str]], Finder]], ...] = (
    (frozenset({"email"}), lambda kinds: _Email()),
    (frozenset({"iban"}), lambda kinds: _Iban()),
    (frozenset({"passport"}), lambda kinds: _Passport()),
    (frozenset({"card", "us_ssn", "ip", "phone"}), _Numbers),
    (frozenset({"ip"}), lambda kinds: _Ipv6()),
)


def personal_finders(kinds: Iterable[str], allow: Iterable[str] = ()) -> list[Finder]:
    """The finders for ``kinds``; where two find the same place, the earlier one names it."""
    wanted, allowed = frozenset(kinds), tuple(allow)
    finders: list[Finder] = [make(wanted & family) for family, make in _FAMILIES if wanted & family]
    return [_Allowing(finder, allowed) for finder in finders] if allowed else finders
