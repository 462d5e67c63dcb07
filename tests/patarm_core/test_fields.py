"""Objects that others wrote: what is read, and the line that says what is wrong."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patarm_core.fields import FieldError, Fields, read_object
from patarm_core.prompts import Message

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "type", "x"]), inner)
    ),
    max_leaves=6,
)
READERS = [
    lambda fields: fields.text("x"),
    lambda fields: fields.text("x", None),
    lambda fields: fields.one_of("x", ("a", "b")),
    lambda fields: fields.flag("x", False),
    lambda fields: fields.whole("x", 0, 9),
    lambda fields: fields.number("x", 0, 2, 1.0),
    lambda fields: fields.messages("x"),
    lambda fields: fields.prompt("x"),
    lambda fields: fields.only({"x", "y"}),
]
IMAGE = [{"role": "user", "content": [{"type": "image_url"}]}]


def error_of(read, value) -> str:
    with pytest.raises(FieldError) as error:
        read(Fields({} if value is ... else {"x": value}))
    return str(error.value)


def test_what_is_right_is_read():
    fields = Fields(
        {"t": "é", "o": "b", "f": True, "w": 3, "n": 1, "z": None, "m": [{"role": "user", "content": "Hi"}]}
    )
    assert (fields.text("t"), fields.one_of("o", ("a", "b")), fields.flag("f", False)) == ("é", "b", True)
    assert (fields.whole("w", 0, 3), fields.number("n", 0, 2)) == (3, 1.0)
    assert fields.messages("m") == fields.prompt("m") == (Message("user", "Hi"),)
    assert (fields.text("z", "d"), fields.whole("none", 0, 1, None), fields.flag("none", True)) == ("d", None, True)


def test_parts_of_text_are_joined():
    content = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert Fields({"m": [{"role": "user", "content": content}]}).messages("m") == (Message("user", "ab"),)


@pytest.mark.parametrize(
    ("reader", "value", "message"),
    [
        (0, ..., "x: missing; expected a text"),
        (0, None, "x: is null; expected a text"),
        (0, 5, "x: is a number; expected a text"),
        (0, "\ud800", "x: is not valid Unicode; expected UTF-8 text"),
        (2, "c", 'x: is "c"; expected one of a, b'),
        (2, ["a"], "x: is a list; expected one of a, b"),
        (3, 1, "x: is 1; expected true or false"),
        (4, 10, "x: is 10; expected a whole number from 0 to 9"),
        (4, True, "x: is true; expected a whole number from 0 to 9"),
        (4, 10**400, "x: is too large a number; expected a whole number from 0 to 9"),
        (5, "1", 'x: is "1"; expected a number from 0 to 2'),
        (5, float("nan"), "x: is nan; expected a number from 0 to 2"),
        (6, [], "x: is empty; expected a message with some text"),
        (6, [5], 'x[0]: is a number; expected {"role", "content"}'),
        (6, [{"role": 5, "content": "a"}], "x[0].role: is 5; expected one of system, "),
        (6, [{"role": "user"}], "x[0].content: missing; expected a text"),
        (6, IMAGE, 'x[0].content[0].type: is "image_url"; expected one of text'),
        (6, [{"role": "user", "content": ["a"]}], "x[0].content[0]: is a text; expected"),
        (7, " ", "x: is empty; expected some text"),
        (7, {}, "x: is an object; expected a text or a list of"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told(reader, value, message):
    assert error_of(READERS[reader], value).startswith(message)


def test_an_unknown_field_is_told_with_the_nearest():
    for name, shown in (("temprature", "temprature"), ("a\nb", '"a\\nb"'), ("x" * 99, "a text")):
        with pytest.raises(FieldError) as error:
            Fields({name: 1}).only({"temperature", "n"})
        assert str(error.value).startswith(f"{shown}: unknown field; fields are n, temperature")
        assert ("(nearest: 'temperature')" in str(error.value)) == (name == "temprature")


@given(JSON)
def test_every_value_is_read_or_told_in_one_line(value):
    for read in READERS:
        try:
            read(Fields({"x": value}))
        except FieldError as error:
            assert "\n" not in str(error) and str(error).startswith("x")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON: Expecting value at column 1"),
        ('{"a": 1,}', "not JSON: "),
        ('{\n"a": }', "at line 2, column 6"),
        (b'{"a": "\xff"}', "not UTF-8 at byte 7"),
        ("[" * 200_000, "not JSON: too large a value"),
        ("1" * 10_000, "not JSON: too large a value"),
        ("[]", "is a list; expected a JSON object"),
    ],
)
def test_what_is_not_an_object_is_told(text, message):
    with pytest.raises(ValueError) as error:
        read_object(text)
    assert message in str(error.value) and "\n" not in str(error.value)


@given(st.dictionaries(st.text(st.characters(codec="utf-8")), JSON))
def test_an_object_is_read_from_text_and_bytes(data):
    text = json.dumps(data, ensure_ascii=False)
    assert repr(read_object(text)) == repr(json.loads(text))


@given(st.binary(max_size=20))
def test_no_bytes_are_too_much(data):
    try:
        assert isinstance(read_object(data), dict)
    except ValueError as error:
        assert "\n" not in str(error)
