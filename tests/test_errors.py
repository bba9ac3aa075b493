from lenet.errors import closest, did_you_mean, printable


def test_a_terminal_does_not_obey_what_is_printed() -> None:
    assert printable("data.root=a\nb\x1b[2Jc\u202ed") == "data.root=a\\nb\\x1b[2Jc\\u202ed"


def test_words_of_all_languages_stay() -> None:
    assert printable("data.root=Übung/ふく – 6×28") == "data.root=Übung/ふく – 6×28"


def test_passwords_in_addresses_are_left_out() -> None:
    for password in ("secret", "s@cret"):
        assert printable(f"postgresql://me:{password}@host/db: no driver") == "postgresql://me:…@host/db: no driver"


def test_the_closest_word_is_suggested_if_one_is_close() -> None:
    assert did_you_mean("momentun", ["lr", "momentum"]).endswith("did you mean momentum?")
    assert (closest("zebra", ["lr", "momentum"]), did_you_mean("zebra", ["lr"])) == (None, "")
