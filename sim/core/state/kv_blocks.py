"""The KV blocks of one instance's pool: how many its sequences hold, and how the decoding ones grow into more.

Plain counts without a clock: the instance holds and releases, and says which iteration it is at.
"""

from __future__ import annotations


def sequence_blocks(context: int, block_tokens: int) -> int:
    """KV blocks that a sequence holds at the start of an iteration: its context and the token to come."""
    return context // block_tokens + 1


class KvBlocks:
    """A pool of `total` blocks of `tokens` tokens each, of which `used` are held.

    `phases[r]` counts decoding sequences with (context - iteration) mod block size = r: the sequences of one phase
    cross into a new block at the same iteration.
    """

    def __init__(self, total: int, tokens: int) -> None:
        self.total = total
        self.tokens = tokens
        self.used = 0
        self.decoding = 0
        self.phases = [0] * tokens

    @property
    def free(self) -> int:
        return self.total - self.used

    def hold(self, context: int) -> None:
        """Take the blocks of a sequence with this context."""
        self.used += sequence_blocks(context, self.tokens)

    def release(self, context: int) -> None:
        """Give back the blocks of a sequence with this context."""
        self.used -= sequence_blocks(context, self.tokens)

    def begin_decoding(self, context: int, iteration: int) -> None:
        """A sequence whose blocks are held gets a token in each iteration from here on."""
        self.phases[(context - iteration) % self.tokens] += 1
        self.decoding += 1

    def end_decoding(self, context: int, iteration: int) -> None:
        """It gets no more tokens; its blocks stay held."""
        self.phases[(context - iteration) % self.tokens] -= 1
        self.decoding -= 1

    def crossing(self, iteration: int) -> int:
        """Blocks that decoding sequences take at the end of this iteration."""
        return self.phases[-(iteration + 1) % self.tokens]

    def after(self, iteration: int, more: int) -> int:
        """Blocks in use when every decoding sequence has got `more` tokens, beginning with this iteration."""
        size, phases = self.tokens, self.phases
        cycles, rest = divmod(more, size)
        # The phases that cross into a new block in the last `rest` iterations lie side by side, perhaps around the end.
        first = -(iteration + rest) % size
        crossing = sum(phases[first : first + rest])
        if first + rest > size:
            crossing += sum(phases[: first + rest - size])
        return self.used + cycles * self.decoding + crossing

    def steps_until_full(self, iteration: int) -> int:
        """How many decode iterations may start before the blocks run out, at least 1.

        Blocks that are free at the start of the next iteration, which is number `iteration`, are not fewer than 0.
        """
        cycles, free = divmod(self.free, self.decoding)
        steps = cycles * self.tokens
        while True:
            steps += 1
            free -= self.phases[-(iteration + steps) % self.tokens]
            if free < 0:
                return steps
