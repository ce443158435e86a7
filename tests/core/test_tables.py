from tpv_jax.core.tables import aligned


def test_names_stand_on_the_left_and_numbers_on_the_right():
  assert aligned([["", "sst2"], ["a long name", "1"], ["b", "0.5"]]) == (
    "             sst2\na long name     1\nb             0.5"
  )


def test_text_columns_have_no_blanks_at_their_end():
  assert aligned([["a", "bc"], ["abc", "d"]], left=2) == "a    bc\nabc  d"


def test_a_cell_makes_no_line_of_its_own_and_moves_no_cursor():
  rows = [("name", "score"), ("a\nforged 100.0", "1.0"), ("b\x1b[2J", "2.0")]
  lines = aligned(rows).split("\n")
  assert len(lines) == 3
  assert len({len(line) for line in lines}) == 1
  assert "\x1b" not in lines[2]
