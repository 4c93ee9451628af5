"""What the lexical leg is asked. Knows nothing of how it is answered."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class LexicalQuery:
    """A query as the fields read it: weighted Kiwi terms and the bigrams of its text. Falsy where it has neither.

    `synonyms` are those of `terms` that only stand for others: they score, but nobody asked for them. `rarities`, 0..1, says how rare a term is in the language; a term that is not there is as rare as can be. No score
    depends on it.
    """

    terms: dict[str, float] = field(default_factory=dict)
    bigrams: tuple[str, ...] = ()
    synonyms: frozenset[str] = frozenset()
    rarities: dict[str, float] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.terms or self.bigrams)

    @property
    def asked(self) -> dict[str, float]:
        """The terms without their synonyms."""
        return {term: weight for term, weight in self.terms.items() if term not in self.synonyms}

    def rarest(self, held: Iterable[str]) -> float:
        """The rarity of the rarest term among `held`, 0..1; 1 where there is none."""
        return max((self.rarities.get(term, 1.0) for term in held), default=1.0)
