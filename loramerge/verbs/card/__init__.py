"""Write a model card for hubs."""

from loramerge.verbs.card.run import VERB, Card, CardResult, card

__all__ = ["VERB", "Card", "CardResult", "card"]
