from proxy.backends.tokens.spelling import Spelling, Spelt, Token

THE, CAT, SAT = Token(1, "The"), Token(2, " cat"), Token(3, " sat")
# Three tokens of one character: vLLM tells no string for the first ones, SGLang half ones.
SILENT = (Token(7, ""), Token(8, ""), Token(9, "🎉"))
HALVES = (Token(7, " \ufffd"), Token(8, "\ufffd"), Token(9, "\ufffd"))


def test_text_that_its_tokens_spell_has_their_ids() -> None:
    assert Spelling().feed("The cat", [THE, CAT]) == Spelt(("The", " cat"), (1, 2))


def test_text_that_ends_inside_a_token_waits_for_its_rest() -> None:
    spelling = Spelling()
    assert spelling.feed("The c", [THE, CAT]) == Spelt(("The",), (1,))
    assert spelling.feed("at s", [SAT]) == Spelt((" cat",), (2,))
    assert spelling.rest() == (" s",)


def test_what_waits_at_the_end_comes_in_one_piece_a_token() -> None:
    spelling = Spelling()
    spelling.feed("The", [THE, CAT, SAT])
    assert spelling.rest() == ("", "")


def test_tokens_of_half_a_character_wait_for_the_whole_one() -> None:
    spelling = Spelling()
    assert spelling.feed("The", [THE, SILENT[0]]) == Spelt(("The",), (1,))
    assert spelling.feed("", SILENT[1:2]) == Spelt((), ())
    assert spelling.feed("🎉", SILENT[2:]) == Spelt(("", "", "🎉"), (7, 8, 9))


def test_half_characters_hide_the_ids_until_a_whole_token_in_ascii() -> None:
    spelling = Spelling()
    assert spelling.feed(" ", HALVES[:1]) == Spelt((" ",), None)
    assert spelling.feed("🎉", HALVES[1:]) == Spelt(("", "🎉"), None)
    assert spelling.feed("é", [Token(4, "é")]) == Spelt(("é",), None)
    assert spelling.feed(" cat", [CAT]) == Spelt((" cat",), (7, 8, 9, 4, 2))
    assert spelling.feed(" s", [SAT]) == Spelt((), ())


def test_a_token_after_half_characters_whose_text_is_held_back_shows_no_ids() -> None:
    spelling = Spelling()
    assert spelling.feed(" 🎉", [*HALVES, CAT]).token_ids is None
    assert spelling.feed(" ca", [CAT]).token_ids is None
    assert spelling.feed("t cat", [THE]).token_ids is None
    assert spelling.feed("The sat", [SAT]) == Spelt(("The sat",), (7, 8, 9, 2, 2, 1, 3))


def test_after_a_special_token_no_ids_are_known() -> None:
    spelling = Spelling()
    assert spelling.feed("The", [THE, Token(0, "<|x|>")]) == Spelt(("The",), (1,))
    assert spelling.feed(" cat", [CAT]) == Spelt(("", " cat"), None)
    for _ in range(2000):
        assert spelling.feed(" sat", [SAT]) == Spelt((" sat",), None)
    assert spelling.rest() == ()
