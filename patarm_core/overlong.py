"""Overlong shaping: a completion that comes near its limit loses reward, the more the nearer."""

from fractions import Fraction


def overlong_reward(num_tokens: int, max_tokens: int, buffer_tokens: int) -> Fraction:
    """Soft overlong punishment (DAPO, arXiv:2503.14476, eq. 13).

        R_length = 0                                 up to L_max - L_buffer tokens
                 = ((L_max - L_buffer) - |y|) / L_buffer  from there to L_max
                 = -1                                beyond

    Args:
        num_tokens: |y|, of the completion.
        max_tokens: L_max.
        buffer_tokens: L_buffer.

    Returns:
        A reward in [-1, 0], exact: groups that vary by rounding alone would be held to teach something.

    Raises:
        ValueError: the buffer is not between 1 and `max_tokens`.
    """
    if not 1 <= buffer_tokens <= max_tokens:
        raise ValueError(f"an overlong buffer has 1 to max_tokens={max_tokens} tokens, got {buffer_tokens}")
    beyond = num_tokens - (max_tokens - buffer_tokens)
    return -Fraction(min(max(beyond, 0), buffer_tokens), buffer_tokens)
