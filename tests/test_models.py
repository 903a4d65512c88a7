"""Check the trained networks that the repository ships, one in each folder of models/."""

import pytest
from conftest import ROOT
from model_cards import check_published

MODELS = sorted(card.parent for card in ROOT.glob("models/*/README.md"))


@pytest.mark.parametrize("folder", MODELS, ids=lambda folder: folder.name)
def test_the_numbers_on_the_card_match_the_files(folder):
    check_published(folder)
