"""What a case is: what is sent, and what is expected of the proxy then."""

from collections.abc import Callable
from dataclasses import dataclass, field

from hyperframe.frame import Frame

from client import Client
from expect import Expectation

Step = bytes | Frame | Callable[[Client], object]


@dataclass
class Case:
    # Of RFC 9113, if it has no number of another before it.
    section: str
    name: str
    # Frames and bytes are sent in one piece; what is a function is called with the client.
    steps: list[Step]
    expected: Expectation
    # The settings that the client begins with; `None`: the steps begin with the preface.
    own: dict[int, int] | None = field(default_factory=dict)

    def run(self, client: Client) -> None:
        if self.own is not None:
            client.open(self.own)
        pieces = []
        for step in self.steps:
            if callable(step):
                client.send(*pieces)
                pieces = []
                step(client)
            else:
                pieces.append(step)
        client.send(*pieces)
        self.expected(client)


def ends(stream: int = 1) -> Step:
    """Waits for the end of the response on a stream."""
    return lambda client: client.response(stream)


def uploads(size: int, stream: int = 1) -> Step:
    """Sends a body of this size and its end, as the windows allow."""
    return lambda client: client.upload(stream, b"u" * size)


def has_reset(stream: int = 1) -> Step:
    """Waits for the proxy to reset a stream."""
    return lambda client: client.until(lambda event: getattr(event, "stream_id", None) == stream and event.type == 3)
